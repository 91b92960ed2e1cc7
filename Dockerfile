FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv --without-pip /opt/jetstream
COPY requirements.lock requirements-build.lock ./
RUN pip install --only-binary :all: --require-hashes -r requirements-build.lock \
 && pip --python /opt/jetstream/bin/python install --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && pip --python /opt/jetstream/bin/python install --no-deps --no-index dist/*.whl

FROM python:3.13-slim
RUN groupadd --gid 10001 jetstream \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin jetstream \
 && install --directory --owner jetstream --group jetstream /data
COPY --from=build /opt/jetstream /opt/jetstream
ENV PATH=/opt/jetstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JETSTREAM_LISTEN_ADDR=:6008 \
    JETSTREAM_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 6008
STOPSIGNAL SIGTERM
# urlopen raises, and Python exits 1, when /health answers 503 or not at all.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, ssl, urllib.request as r; s = 'https' if os.getenv('JETSTREAM_TLS_CERT') else 'http'; r.urlopen(s + '://127.0.0.1:6008/health', timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["jetstream"]
CMD ["serve"]
