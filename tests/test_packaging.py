"""The package, its lock files, make, the image and the compose file: they must agree with each other."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jetstream
from jetstream.settings import PLC_URL_VARIABLE, settings

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
LOCKS = {
    # What the image has: the driver of PostgreSQL, too.
    "requirements.lock": [*PROJECT["project"]["dependencies"], *EXTRAS["postgresql"]],
    "requirements-build.lock": PROJECT["dependency-groups"]["build"],
    "requirements-docs.lock": PROJECT["dependency-groups"]["docs"],
    "requirements-dev.lock": [
        *PROJECT["project"]["dependencies"],
        *(one for extra in EXTRAS.values() for one in extra if not one.startswith("jetstream-server")),
        *PROJECT["dependency-groups"]["build"],
        *(one for one in PROJECT["dependency-groups"]["dev"] if isinstance(one, str)),
    ],
}
VERSION = jetstream.__version__
TARGETS = {
    "help", "setup", "run", "test", "test-integration", "lint", "format", "bench", "dictionary", "dashboard",
    "charts", "attack", "soak", "soak-cluster", "soak-mutants", "up", "down", "logs", "up-cluster",
    "down-cluster", "dist", "docs", "lock", "clean",
}  # fmt: skip
# The image fixes where the server listens and keeps its data.
FIXED_BY_IMAGE = {"JETSTREAM_LISTEN_ADDR", "JETSTREAM_METRICS_LISTEN_ADDR", "JETSTREAM_DATA_DIR"}


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its keyword, and the rest of the line."""

    keyword: str
    text: str


def dockerfile() -> list[list[Instruction]]:
    """Return the stages of the Dockerfile, each a list of instructions that begins with FROM."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: list[list[Instruction]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        step = Instruction(*line.split(maxsplit=1))
        if step.keyword == "FROM":
            stages.append([])
        stages[-1].append(step)
    return stages


def only(stage: list[Instruction], keyword: str) -> str:
    [step] = [step for step in stage if step.keyword == keyword]
    return step.text


def image_environment() -> dict[str, str]:
    return dict(one.split("=", 1) for one in shlex.split(only(dockerfile()[-1], "ENV")))


def health_check() -> list[str]:
    command: list[str] = json.loads(only(dockerfile()[-1], "HEALTHCHECK").split("CMD", 1)[1])
    return command


def composed() -> dict[str, Any]:
    service: dict[str, Any] = compose_file()["services"]["jetstream"]
    return service


def compose_file() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    return loaded


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Read a lock file: the pin of each package, and the number of its hashes."""
    entries = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    found: dict[str, tuple[Requirement, int]] = {}
    for entry in entries:
        if entry and not entry.startswith("#"):
            pin, *hashes = entry.split(" --hash=sha256:")
            requirement = Requirement(pin)
            found[canonicalize_name(requirement.name)] = (requirement, len(hashes))
    return found


def run(command: list[str] | str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options
    )


def must(command: list[str] | str, **options: Any) -> str:
    done = run(command, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def outside_make() -> dict[str, str]:
    """Return the environment without the variables that `make test` passes on to an inner make."""
    return {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}


class TestLocks:
    @pytest.mark.parametrize("name", LOCKS)
    def test_everything_is_pinned_with_hashes_and_without_addresses(self, name: str) -> None:
        assert "://" not in (ROOT / name).read_text()
        assert locked(name)
        for requirement, hashes in locked(name).values():
            assert [one.operator for one in requirement.specifier] == ["=="]
            assert hashes > 0, requirement

    @pytest.mark.parametrize("name", LOCKS)
    def test_what_the_project_asks_for_is_locked_at_a_version_it_allows(self, name: str) -> None:
        pins = locked(name)
        for asked in map(Requirement, LOCKS[name]):
            [pin] = pins[canonicalize_name(asked.name)][0].specifier
            assert asked.specifier.contains(pin.version), f"{asked}: run `make lock`"

    def test_the_locks_agree(self) -> None:
        whole = locked("requirements-dev.lock")
        for name in LOCKS.keys() - {"requirements-docs.lock"}:  # its packages are apart from all others
            for package, (requirement, _) in locked(name).items():
                assert requirement.specifier == whole[package][0].specifier

    def test_tools_of_development_stay_out_of_the_image(self) -> None:
        assert not {"pytest", "mypy", "ruff", "hatchling"} & locked("requirements.lock").keys()


def imported(*paths: Path) -> set[str]:
    """Return the third-party packages that Python files import, by their name in the registry."""
    distributions = packages_distributions()
    ours = {"jetstream", "benches", "scripts", "tests"}
    modules = {module for path in paths for module in imported_modules(ast.parse(path.read_text()))}
    return {
        canonicalize_name(distributions[module][0]) for module in modules - ours - sys.stdlib_module_names
    }


def imported_modules(tree: ast.Module) -> set[str]:
    """Return the top-level modules that a file imports, at any place in it."""
    names: list[str] = []
    statements: list[ast.AST] = [tree]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        inside = ast.iter_child_nodes(node)
        statements += [
            each for each in inside if isinstance(each, ast.stmt | ast.ExceptHandler | ast.match_case)
        ]
    return {name.partition(".")[0] for name in names}


def declared(*requirements: str) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


class TestDependencies:
    PACKAGE = ROOT / "src" / "jetstream"
    TESTING = PACKAGE / "testing.py"

    def test_every_import_of_the_package_is_declared_and_nothing_else(self) -> None:
        files = [path for path in self.PACKAGE.rglob("*.py") if path != self.TESTING]
        base = declared(*PROJECT["project"]["dependencies"])
        assert imported(*files) == base | declared(*EXTRAS["postgresql"])

    def test_every_import_of_the_extras_is_declared(self) -> None:
        simulator = imported(*(self.PACKAGE / "simulator").rglob("*.py"))
        base = declared(*PROJECT["project"]["dependencies"])
        assert simulator <= base | declared(*EXTRAS["simulator"])
        assert imported(self.TESTING) <= base | declared(*EXTRAS["testing"])

    def test_every_import_of_the_tests_is_declared(self) -> None:
        files = [path for folder in ("tests", "benches", "scripts") for path in (ROOT / folder).rglob("*.py")]
        # These run with libraries of their own: their tests, or `make docs`, install them.
        theirs = {ROOT / "tests" / "foreign" / "python", ROOT / "scripts" / "site_pages.py"}
        files = [path for path in files if not theirs & {path, path.parent}]
        assert imported(*files) <= declared(*LOCKS["requirements-dev.lock"])

    @pytest.mark.parametrize(
        ("module", "statement", "extra"),
        [
            ("aiohttp", "import jetstream.cli.simulate", "simulator"),
            ("coincurve", "import jetstream.cli.simulate", "simulator"),
            ("pytest_asyncio", "import jetstream.testing", "testing"),
        ],
    )
    def test_a_missing_package_is_reported_with_the_extra_that_has_it(
        self, module: str, statement: str, extra: str
    ) -> None:
        done = run([sys.executable, "-c", f"import sys; sys.modules[{module!r}] = None; {statement}"])
        needs = f"needs {module}: pip install '.[{extra}]'"
        assert done.stderr.splitlines()[-1].endswith(needs)

    def test_a_missing_driver_is_reported_where_the_log_is_in_postgresql(self) -> None:
        command = "['log', 'stats', '--log', 'postgresql://u:secret@h/d']"
        program = f"import sys; sys.modules['asyncpg'] = None; from jetstream import cli; cli.main({command})"
        done = run([sys.executable, "-c", program])
        assert done.returncode == 2
        assert "needs the driver asyncpg: pip install 'jetstream-server[postgresql]'" in done.stderr
        assert "secret" not in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_the_command_line_reports_a_missing_package_in_one_line(self) -> None:
        program = (
            "import sys; sys.modules['aiohttp'] = None; from jetstream import cli; cli.main(['simulate'])"
        )
        done = run([sys.executable, "-c", program])
        assert done.returncode == 1
        assert done.stderr.startswith("jetstream: the simulator needs aiohttp")
        assert len(done.stderr.splitlines()) == 1


class TestMake:
    def test_help_is_the_default_and_lists_every_target(self) -> None:
        listed = must(["make"], cwd=ROOT, env=outside_make()).splitlines()
        assert {line.split()[1] for line in listed} == TARGETS

    def test_run_serves_and_passes_its_arguments_on(self) -> None:
        steps = must(["make", "--dry-run", "run", "ARGS=--wire v1"], cwd=ROOT, env=outside_make())
        assert "jetstream serve --wire v1" in steps

    @pytest.mark.parametrize("target", ["up", "down", "logs", "up-cluster", "down-cluster"])
    def test_without_an_engine_it_fails_with_a_message(self, target: str, tmp_path: Path) -> None:
        nowhere = {**outside_make(), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
        done = run(["make", target], cwd=ROOT, env=nowhere)
        assert done.returncode != 0
        assert f"{target}: cannot connect to a Docker engine" in done.stderr

    def test_setup_without_a_suitable_python_names_those_it_tried(self, tmp_path: Path) -> None:
        # A copy without its venv, so that there is something to set up.
        (tmp_path / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts")
        done = run(["scripts/setup"], cwd=tmp_path, env={**os.environ, "PYTHON": "no-such-python"})
        assert done.returncode == 1
        assert "tried: no-such-python" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_ci_runs_lint_then_both_kinds_of_tests(self) -> None:
        ci = ROOT / ".ci" / "run"
        assert os.access(ci, os.X_OK)
        assert ci.read_text().splitlines()[-3:] == ["make lint", "make test", "make test-integration"]


class TestDist:
    def test_its_bytes_depend_only_on_the_sources(self, tmp_path: Path) -> None:
        """Neither the place and the time of the checkout nor the umask of its owner changes them."""
        built = [
            build(tmp_path / name, time)
            for name, time in [("one", 1_500_000_000), ("another/place", 1_600_000_001)]
        ]
        assert built[0].keys() == {
            f"jetstream_server-{VERSION}{end}" for end in (".tar.gz", "-py3-none-any.whl")
        }
        assert built[0] == built[1]

    def test_the_release_builds_what_make_does(self) -> None:
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
        jobs = workflow["jobs"]
        steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        called = {target for step in steps for target in re.findall(r"make ((?:[a-z-]+ ?)+)", step)}
        assert {word for targets in called for word in targets.split()} <= TARGETS
        assert jobs["check"]["strategy"]["matrix"]["python"][0] == PROJECT["project"]["requires-python"][2:]
        assert set(jobs["publish"]["needs"]) <= jobs.keys()


def build(room: Path, time: int) -> dict[str, bytes]:
    """Build the wheel and the sdist from a copy of what they need. Return their bytes by name."""
    checkout = room / "checkout"
    checkout.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", "src"):
        copy(ROOT / name, checkout / name)
    for path in checkout.rglob("*"):
        os.utime(path, (time, time))
        path.chmod(0o700 if path.is_dir() else 0o600 + time % 2 * 0o44)
    must(
        [sys.executable, "-m", "hatchling", "build", "-d", str(room / "dist")],
        cwd=checkout,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    return {path.name: path.read_bytes() for path in (room / "dist").iterdir()}


class TestDockerfile:
    def test_everything_it_copies_exists_and_nothing_else_is_sent_to_the_engine(self) -> None:
        sources = {source for source, _ in copied(dockerfile()[0])}
        rules = (ROOT / ".dockerignore").read_text().splitlines()
        assert rules[1] == "*"
        assert {rule[1:] for rule in rules if rule.startswith("!")} == sources
        for source in sources:
            assert (ROOT / source).exists(), source

    def test_it_does_not_run_as_root(self) -> None:
        [made] = [step.text for step in dockerfile()[-1] if "useradd" in step.text]
        uid, gid = only(dockerfile()[-1], "USER").split(":")
        assert int(uid) >= 10_000
        assert f"--uid {uid} --gid {gid}" in made

    def test_its_data_is_where_the_server_keeps_it(self) -> None:
        last = dockerfile()[-1]
        assert only(last, "VOLUME") == image_environment()["JETSTREAM_DATA_DIR"] == "/data"
        assert any("install --directory --owner jetstream --group jetstream /data" in s.text for s in last)

    def test_it_exposes_and_checks_the_port_it_listens_on(self) -> None:
        port = only(dockerfile()[-1], "EXPOSE")
        assert image_environment()["JETSTREAM_LISTEN_ADDR"] == f":{port}" == ":6008"
        assert f":{port}/health" in health_check()[-1]


class TestCompose:
    def test_it_publishes_the_port_and_keeps_the_data(self) -> None:
        assert composed()["ports"] == ["6008:6008"]
        [volume] = composed()["volumes"]
        name, target = volume.split(":")
        assert target == image_environment()["JETSTREAM_DATA_DIR"]
        assert name in compose_file()["volumes"]

    def test_every_setting_can_be_passed_in(self) -> None:
        known = {setting.variable for setting in settings()}
        assert known > FIXED_BY_IMAGE
        assert set(composed()["environment"]) == (known - FIXED_BY_IMAGE) | {PLC_URL_VARIABLE}

    def test_it_waits_for_a_shutdown_and_allows_many_connections(self) -> None:
        assert composed()["build"] == "."
        assert composed()["restart"] == "unless-stopped"
        assert int(composed()["stop_grace_period"].removesuffix("s")) >= 15
        assert composed()["ulimits"]["nofile"] >= 65_536

    def test_it_can_write_only_its_data_and_has_no_privileges(self) -> None:
        assert composed()["read_only"] is True
        assert composed()["tmpfs"] == "/tmp"
        assert composed()["cap_drop"] == ["ALL"]
        assert composed()["security_opt"] == ["no-new-privileges:true"]


def copied(stage: list[Instruction]) -> list[tuple[str, str]]:
    """Return what a stage copies from the checkout, as pairs of source and destination."""
    pairs = []
    for step in stage:
        if step.keyword == "COPY" and not step.text.startswith("--from"):
            *sources, destination = step.text.split()
            pairs += [(source, destination) for source in sources]
    return pairs


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the build stage of the Dockerfile in new venvs. Return the venv that it makes."""
    room = tmp_path_factory.mktemp("image")
    (room / "build").mkdir()
    make_base(room / "base")
    venv = room / "jetstream"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}},
        "PATH": f"{room / 'base' / 'bin'}:{os.environ['PATH']}",
    }
    for step in dockerfile()[0]:
        if step.keyword == "COPY":
            *sources, destination = step.text.split()
            for source in sources:
                copy(ROOT / source, room / "build" / destination)
        elif step.keyword == "RUN":
            command = step.text.replace("/opt/jetstream", str(venv))
            must(["bash", "-euc", command], cwd=room / "build", env=environment)
    return venv


def make_base(path: Path) -> None:
    """Make a stand-in for the base image: a Python with only pip."""
    if shutil.which("uv") and run(["uv", "--version"]).returncode == 0:
        must(["uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(path)])
    else:
        must([sys.executable, "-m", "venv", str(path)])


def copy(source: Path, destination: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, destination)


# The first run on a machine downloads every locked wheel.
@pytest.mark.timeout(600)
class TestImage:
    def test_its_entry_point_and_module_run(self, image: Path, tmp_path: Path) -> None:
        [entry] = json.loads(only(dockerfile()[-1], "ENTRYPOINT"))
        for command in ([entry], ["python", "-m", "jetstream"]):
            command[0] = str(image / "bin" / command[0])
            assert VERSION in must([*command, "--version"], cwd=tmp_path)

    def test_its_command_names_every_setting_in_its_help(self, image: Path, tmp_path: Path) -> None:
        environment = {**image_outside_docker(image, tmp_path), "COLUMNS": "200"}
        shown = must([*start_command(), "--help"], env=environment).split()
        for setting in settings():
            assert {setting.flag, f"{setting.variable}]"} <= set(shown)

    def test_it_serves_is_healthy_and_stops_when_asked(self, image: Path, tmp_path: Path) -> None:
        environment = image_outside_docker(image, tmp_path)
        stop = signal.Signals[only(dockerfile()[-1], "STOPSIGNAL")]
        with subprocess.Popen(start_command(), env=environment, stderr=subprocess.PIPE) as server:
            try:
                check = health_check_on(listening_port(server))
                must(check, env=environment)
            finally:
                server.send_signal(stop)
                server.communicate()
        assert server.returncode == 0
        assert run(check, env=environment).returncode == 1

    def test_it_has_every_file_of_the_package(self, image: Path) -> None:
        [installed] = (image / "lib").glob("python*/site-packages/jetstream")
        assert package_files(installed) == package_files(Path(jetstream.__file__).parent)

    def test_it_has_only_runtime_dependencies(self, image: Path) -> None:
        [packages] = (image / "lib").glob("python*/site-packages")
        installed = {canonicalize_name(p.name.split("-")[0]) for p in packages.glob("*.dist-info")}
        assert installed - {"jetstream-server"} <= locked("requirements.lock").keys()
        assert "jetstream-server" in installed


def start_command() -> list[str]:
    """Return the command that the image runs: entry point and command."""
    last = dockerfile()[-1]
    return [*json.loads(only(last, "ENTRYPOINT")), *json.loads(only(last, "CMD"))]


def image_outside_docker(image: Path, room: Path) -> dict[str, str]:
    """Return the environment of the image, with a free port of this host and no relay."""
    return {
        **image_environment(),
        "PATH": f"{image / 'bin'}:{os.environ['PATH']}",
        "JETSTREAM_LISTEN_ADDR": "127.0.0.1:0",
        "JETSTREAM_DATA_DIR": str(room / "data"),
        "JETSTREAM_WS_URL": "ws://127.0.0.1:9",
    }


def listening_port(server: subprocess.Popen[bytes]) -> int:
    """Read the log of a server until it listens. Return the port."""
    assert server.stderr
    lines = []
    for line in server.stderr:
        lines.append(line)
        if b'"listening"' in line:
            port = urlsplit(str(json.loads(line)["subscribe"])).port
            assert port
            return port
    pytest.fail(f"the server ended before it listened: {b''.join(lines).decode()}")


def health_check_on(port: int) -> list[str]:
    return [part.replace(":6008/", f":{port}/") for part in health_check()]


def package_files(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


class TestTrackedFiles:
    @pytest.mark.parametrize(
        "search",
        [
            ("-F", str(ROOT)),
            ("-E", r"(^|[^A-Za-z0-9_.])/(home|root|Users)/[a-z]"),
            ("-E", r'(index-url|find-links|\b"?resolved"?|registry)[^#]*https?://'),
            ("-E", r"files\.pythonhosted|pypi\.org/simple|registry\.npmjs"),
        ],
    )
    def test_none_names_a_machine_or_a_package_index(self, search: tuple[str, str]) -> None:
        if run(["git", "rev-parse"], cwd=ROOT).returncode != 0:
            pytest.skip("not a git checkout: nothing says which files are tracked")
        kind, pattern = search
        found = run(["git", "grep", "-nI", kind, pattern], cwd=ROOT)
        assert found.returncode == 1, found.stdout + found.stderr
