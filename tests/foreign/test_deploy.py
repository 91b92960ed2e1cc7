"""What `deploy/` has, in the programs that it is for: nginx, Caddy, Prometheus, systemd."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.builders import identity
from tests.foreign.conftest import missing
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import Start, get, published
from tests.tls import certificate

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
NAME = "jetstream.example.com"
PATIENCE_S = 30.0
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"  # of Debian's libnginx-mod-stream
PROXIES = (ip_network("127.0.0.1"),)


def installed(name: str) -> str:
    """Return the path of a program. Debian has some where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or missing(name)


def require(file: str) -> None:
    if not Path(file).exists():
        missing(file)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def listening(port: int) -> None:
    """Return once something accepts connections on a port."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def changed(text: str, changes: dict[str, str]) -> str:
    """Replace what an example has and a test cannot use. Each must be there."""
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def running_nginx(blocks: str, room: Path, port: int, modules: str = "") -> AsyncIterator[None]:
    """Run nginx with some blocks of configuration, until it listens on a port, and while the block runs."""
    (room / "nginx.conf").write_text(
        f"{modules}pid {room}/pid;\ndaemon off;\nerror_log {room}/error.log;\nevents {{}}\n{blocks}"
    )
    async with program(installed("nginx"), "-e", room / "error.log", "-c", room / "nginx.conf"):
        await listening(port)
        yield


@asynccontextmanager
async def nginx(server_port: int, room: Path) -> AsyncIterator[int]:
    """Run nginx with our example. Gives its port, with TLS."""
    port, pem = free_port(), certificate(room)
    example = changed(
        (DEPLOY / "nginx" / "jetstream.conf").read_text(),
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "server 127.0.0.1:6008": f"server 127.0.0.1:{server_port}",
            f"/etc/ssl/{NAME}/fullchain.pem": str(pem),
            f"/etc/ssl/{NAME}/privkey.pem": str(pem),
        },
    )
    (room / "jetstream.conf").write_text(example)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {room}/{kind};\n" for kind in kinds)
    main = f"{temporary}access_log off;\nerror_log {room}/error.log;\ninclude {room}/jetstream.conf;\n"
    async with running_nginx(f"http {{\n{main}}}\n", room, port):
        yield port


@asynccontextmanager
async def caddy(server_port: int, room: Path) -> AsyncIterator[int]:
    """Run Caddy with our example, and a certificate of our own. Gives its port, with TLS."""
    port, pem = free_port(), certificate(room)
    hosts = f"https://{NAME}:{port}, https://127.0.0.1:{port}"
    example = changed(
        (DEPLOY / "caddy" / "Caddyfile").read_text(),
        {
            f"{NAME} {{": f"{hosts} {{\n\ttls {pem} {pem}\n\tbind 127.0.0.1\n",
            "reverse_proxy 127.0.0.1:6008": f"reverse_proxy 127.0.0.1:{server_port}",
        },
    )
    (room / "Caddyfile").write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tstorage file_system "
        + str(room)
        + "\n}\n"
        + example
    )
    async with program(installed("caddy"), "run", "--adapter", "caddyfile", "--config", room / "Caddyfile"):
        await listening(port)
        yield port


@asynccontextmanager
async def nginx_stream(server_port: int, room: Path) -> AsyncIterator[int]:
    """Run nginx with our example for TCP connections. Gives its port."""
    port = free_port()
    require(STREAM_MODULE)
    example = changed(
        (DEPLOY / "nginx" / "jetstream-stream.conf").read_text(),
        {"listen 443": f"listen 127.0.0.1:{port}", "127.0.0.1:6008": f"127.0.0.1:{server_port}"},
    )
    async with running_nginx(example, room, port, f"load_module {STREAM_MODULE};\n"):
        yield port


class TestBehindATcpProxy:
    """nginx sends heads of version 1. Its own connections, of `listening`, have one as well."""

    async def test_the_server_knows_the_client(
        self, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        service = await start(upstream_cursor=0, trusted_proxies=PROXIES, proxy_protocol=True)
        # Another address of this machine, which is not trusted: what it forwards itself is not believed.
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with (
            nginx_stream(service.port, tmp_path) as port,
            aiohttp.ClientSession(connector=connector) as elsewhere,
            elsewhere.ws_connect(
                f"http://127.0.0.1:{port}/subscribe", headers={"X-Forwarded-For": "203.0.113.9"}
            ) as socket,
        ):
            [client] = service.subscribe.clients()
            assert client.sink.peer == "127.0.0.2"
            relay.publish(numbered([identity(1)]))
            assert (await socket.receive_json(timeout=PATIENCE_S))["identity"]["seq"] == 1

    async def test_tls_of_the_server_comes_behind_the_head(
        self, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        pem = certificate(tmp_path)
        service = await start(trusted_proxies=PROXIES, proxy_protocol=True, tls_cert=pem)
        async with (
            nginx_stream(service.port, tmp_path) as port,
            session.get(f"https://127.0.0.1:{port}/health") as response,
        ):
            assert response.status == 200


Proxy = Callable[[int, Path], AbstractAsyncContextManager[int]]


@pytest.fixture
async def session(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Return a session that believes the certificate of the test."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


@pytest.mark.parametrize("proxy", [nginx, caddy], ids=["nginx", "caddy"])
class TestBehindAProxy:
    async def test_a_websocket_gets_events_and_the_reason_of_its_end(
        self, proxy: Proxy, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        service = await start(upstream_cursor=0, trusted_proxies=PROXIES)
        async with proxy(service.port, tmp_path) as port:
            url = f"https://127.0.0.1:{port}/subscribe?limit=2"
            async with session.ws_connect(url) as socket:
                for seq in (1, 2):
                    relay.publish(numbered([identity(seq)]))
                    assert (await socket.receive_json(timeout=PATIENCE_S))["identity"]["seq"] == seq
                assert (await socket.receive(timeout=PATIENCE_S)).type is aiohttp.WSMsgType.CLOSE
                assert socket.close_code == 1000

    @pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
    async def test_an_event_stream_is_not_held_back(
        self,
        accept: str,
        proxy: Proxy,
        relay: Relay,
        start: Start,
        session: aiohttp.ClientSession,
        tmp_path: Path,
    ) -> None:
        service = await start(upstream_cursor=0, trusted_proxies=PROXIES)
        async with proxy(service.port, tmp_path) as port:
            headers = {"Accept": accept, "Accept-Encoding": "identity"}
            async with session.get(f"https://127.0.0.1:{port}/events", headers=headers) as response:
                assert response.status == 200
                for seq in (1, 2):  # one after another: the second is sent when the first has come
                    relay.publish(numbered([identity(seq)]))
                    await _line_with(response, f'"seq":{seq},')

    async def test_the_server_knows_its_public_address_and_the_client(
        self, proxy: Proxy, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        service = await start(trusted_proxies=PROXIES)
        async with proxy(service.port, tmp_path) as port:
            headers = {"Host": NAME, "X-Forwarded-Host": "wrong.example"}
            async with session.get(f"https://127.0.0.1:{port}/", headers=headers) as response:
                assert f"wss://{NAME}/subscribe" in await response.text()

    async def test_metrics_are_hidden_and_a_large_list_passes(
        self, proxy: Proxy, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        service = await start(trusted_proxies=PROXIES)
        dids = BytesIO(b"\n".join(b"did:plc:%024d" % number for number in range(50_000)))
        async with proxy(service.port, tmp_path) as port:
            base = f"https://127.0.0.1:{port}"
            for path in ("/metrics", "/subscribers.json", "/subscribers/kick"):
                async with session.get(f"{base}{path}") as response:
                    assert response.status == 404
            async with session.post(f"{base}/filters", data=dids) as response:
                assert (await response.json())["dids"] == 50_000


async def _line_with(response: aiohttp.ClientResponse, text: str) -> None:
    """Read lines of a body until one has a text."""
    async with asyncio.timeout(PATIENCE_S):
        while text not in (await response.content.readline()).decode():
            pass


class TestPrometheus:
    def test_the_rules_are_right_and_pass_their_tests(self) -> None:
        promtool, folder = installed("promtool"), DEPLOY / "prometheus"
        run(promtool, "check", "config", folder / "prometheus.yml")
        assert "SUCCESS" in run(promtool, "check", "rules", folder / "alerts.yml")
        run(promtool, "test", "rules", folder / "alerts_test.yml")

    async def test_every_panel_and_alert_has_data_of_a_running_server(
        self, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        service = await start(upstream_cursor=0)
        relay.publish(numbered([identity(1)]))
        async with session.ws_connect(f"http://127.0.0.1:{service.port}/subscribe?cursor=0") as socket:
            await socket.receive_json(timeout=PATIENCE_S)
            await published(service, 1)
            async with prometheus(service.port, tmp_path) as url:
                async with asyncio.timeout(PATIENCE_S):
                    for query in _queries():
                        while not await _series(session, url, query):  # noqa: ASYNC110 - nothing tells when
                            await asyncio.sleep(0.2)
                alerts = await _get(session, f"{url}/api/v1/rules")
        [group] = alerts["groups"]
        assert [rule["lastError"] for rule in group["rules"] if "lastError" in rule] == []
        assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


@asynccontextmanager
async def prometheus(server_port: int, room: Path) -> AsyncIterator[str]:
    """Run Prometheus with our configuration, which reads a server each second. Gives its URL."""
    port = free_port()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server_port}"]}]
    (room / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", room)
    async with program(
        installed("prometheus"),
        f"--config.file={room}/prometheus.yml",
        f"--storage.tsdb.path={room}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
    ):
        await listening(port)
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(PATIENCE_S):
            while (await get(port, "/-/ready"))[0] != 200:  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0.05)
        yield url


def _queries() -> list[str]:
    """Return the first query of each panel, for the last half minute and all servers."""
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "jetstream.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [
        query.replace("$__rate_interval", "30s").replace("$instance", ".*")
        for query in queries
        if not query.endswith("> 0")  # of what has happened only
    ]


async def _series(session: aiohttp.ClientSession, url: str, query: str) -> list[Any]:
    found = await _get(session, f"{url}/api/v1/query", query=query)
    result: list[Any] = found["result"]
    return result


async def _get(session: aiohttp.ClientSession, url: str, **params: str) -> dict[str, Any]:
    async with session.get(url, params=params) as response:
        body = await response.json()
    assert body["status"] == "success", body
    data: dict[str, Any] = body["data"]
    return data


def test_systemd_accepts_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    analyze = installed("systemd-analyze")
    text = (DEPLOY / "systemd" / "jetstream.service").read_text()
    unit = tmp_path / "jetstream.service"
    unit.write_text(text.replace("/opt/jetstream/bin/jetstream", "/bin/true"))
    assert run(analyze, "verify", "--man=no", unit) == ""
    found = run(analyze, "security", "--offline=true", "--no-pager", unit)
    exposure = re.search(r"exposure level for jetstream.service: ([\d.]+)", found)
    assert exposure is not None
    assert float(exposure[1]) < 2


@asynccontextmanager
async def balancer(edges: list[int], room: Path) -> AsyncIterator[int]:
    """Run Caddy with the configuration of docker-compose.cluster.yaml. Gives its port."""
    port = free_port()
    names = " ".join(f"edge-{number}:6008" for number in (1, 2, 3))
    example = changed(
        (DEPLOY / "cluster" / "Caddyfile").read_text(),
        {
            ":6008 {\n\t#": f"http://127.0.0.1:{port} {{\n\t#",
            names: " ".join(f"127.0.0.1:{edge}" for edge in edges),
            "admin off": f"admin off\n\tstorage file_system {room}",
        },
    )
    (room / "Caddyfile").write_text(example)
    async with program(installed("caddy"), "run", "--adapter", "caddyfile", "--config", room / "Caddyfile"):
        await listening(port)
        yield port


class TestCluster:
    async def test_clients_go_to_edges_that_are_ready_and_to_any_when_none_is(
        self, relay: Relay, start: Start, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        ready = await start(upstream_cursor=0, ready_lag=None)
        waiting = await start(
            upstream="ws://127.0.0.1:9", data_dir=tmp_path / "other"
        )  # which has had no frame
        relay.publish(numbered([identity(1)]))
        await published(ready, 1)
        async with balancer([ready.port, waiting.port, free_port()], tmp_path) as port:
            await _answers_again_and_again(port, "/ready", 200)
            url = f"http://127.0.0.1:{port}/subscribe"
            sockets = [await session.ws_connect(url) for _ in range(3)]
            assert (len(ready.subscribe), len(waiting.subscribe)) == (len(sockets), 0)
            assert (await get(port, "/metrics"))[0] == 404
            assert (await get(port, "/subscribers.json"))[0] == 404
            ready.stop()
            await _answers_again_and_again(port, "/ready", 503)
            async with session.ws_connect(f"{url}?cursor=0"):
                assert len(waiting.subscribe) == 1


async def _answers_again_and_again(port: int, path: str, status: int) -> None:
    """Wait until a path has answered ten times with this status: Caddy then knows which servers are ready."""
    async with asyncio.timeout(PATIENCE_S):
        times = 0
        while times < 10:
            times = times + 1 if (await get(port, path))[0] == status else 0
            await asyncio.sleep(0.02)
