"""What `deploy/` has: every name in it is one of the server, and its files agree with each other."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import yaml
from scripts.make_dashboard import FILE, dashboard
from tests.builders import identity
from tests.relay import Relay, numbered
from tests.serving import Figures, Start, figures, published

from jetstream.limits import RuntimeLimits, SupervisorLimits
from jetstream.settings import PLC_URL_VARIABLE, Settings, settings
from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.own_figures import OwnFigures
from jetstream.supervisor.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
ALERTS_TEST = DEPLOY / "prometheus" / "alerts_test.yml"
OPERATIONS = ROOT / "docs" / "operations.md"
FLAGS = {setting.flag for setting in settings()}
VARIABLES = {setting.variable for setting in settings()} | {PLC_URL_VARIABLE}
METRIC = re.compile(r"\b((?:jetstream|process)_[a-z_]+)(?:\{([^}]*)\})?")
# Files with settings in them.
FOLDERS = ("caddy", "cluster", "nginx", "prometheus", "systemd")
EXAMPLES = [path for folder in FOLDERS for path in sorted((DEPLOY / folder).iterdir())]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = loaded(ALERTS)["groups"][0]["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text())["panels"]
    return found


def queries() -> list[str]:
    return [rule["expr"] for rule in rules()] + [
        target["expr"] for panel in panels() for target in panel.get("targets", [])
    ]


def compose() -> dict[str, Any]:
    services: dict[str, Any] = loaded(ROOT / "docker-compose.yaml")["services"]
    return services


def unit() -> configparser.RawConfigParser:
    """Read the systemd unit. Keys that are repeated have the last value."""
    parser = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "jetstream.service")
    return parser


def series(found: Figures) -> dict[str, list[set[str]]]:
    """Return the labels of each metric's series, as `name="value"`."""
    by_name: dict[str, list[set[str]]] = {}
    for key in found:
        name, _, labels = key.partition("{")
        by_name.setdefault(name, []).append(set(re.findall(r'\w+="[^"]*"', labels)))
    return by_name


async def served(relay: Relay, start: Start) -> dict[str, list[set[str]]]:
    """Return the series of a server that has stored an event, and those of one of several processes."""
    relay.publish(numbered([identity(1)]))
    service = await start(upstream_cursor=0)
    await published(service, 1)
    found = await figures(service.port)
    for family in OwnFigures(Supervisor(Settings(edges=1)).edges, Acceptor(1, SupervisorLimits())).collect():
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return series(found)


class TestMetrics:
    async def test_every_metric_and_label_in_a_query_is_the_servers(self, relay: Relay, start: Start) -> None:
        """The labels that Prometheus adds are left out, and `upstream`, which `figures` leaves out."""
        known = await served(relay, start)
        theirs = {"job", "instance", "upstream", "le"}
        for query in queries():
            for name, matchers in METRIC.findall(query):
                assert name in known, query
                for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
                    if label not in theirs:
                        values = {one for labels in known[name] for one in labels}
                        assert any(one.startswith(f'{label}="') for one in values), query
                        if operator == "=":
                            assert f'{label}="{value}"' in values, query

    async def test_labels_to_sum_by_exist(self, relay: Relay, start: Start) -> None:
        known = await served(relay, start)
        labels = {one.partition("=")[0] for sets in known.values() for labels in sets for one in labels}
        by = {
            label
            for query in queries()
            for each in re.findall(r"by \(([^)]*)\)", query)
            for label in each.split(", ")
        }
        assert by <= labels | {"job", "instance", "upstream"}

    def test_metrics_in_the_rule_tests_are_those_of_the_rules(self) -> None:
        asked = {name for rule in rules() for name, _ in METRIC.findall(rule["expr"])}
        given = {name for name, _ in METRIC.findall(ALERTS_TEST.read_text())}
        assert given == asked


class TestAlerts:
    def test_each_says_how_urgent_it_is_and_what_to_do(self) -> None:
        for rule in rules():
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert set(rule["annotations"]) == {"summary", "action"}

    def test_each_has_a_test_and_a_line_in_the_documentation(self) -> None:
        names = [rule["alert"] for rule in rules()]
        assert len(set(names)) == len(names)
        tested = ALERTS_TEST.read_text()
        assert [name for name in names if f'alertname="{name}"' not in tested] == []
        described = re.findall(r"^\| `(Jetstream\w+)` \|", OPERATIONS.read_text(), re.MULTILINE)
        assert described == names


class TestDashboard:
    def test_the_file_is_what_the_script_makes(self) -> None:
        assert json.loads(FILE.read_text()) == dashboard(), "run `make dashboard`"

    def test_panels_have_titles_queries_and_a_place_of_their_own(self) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in panels():
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells
            assert panel["title"]
            assert panel["type"] == "row" or panel["targets"]

    def test_its_data_source_is_provisioned(self) -> None:
        [source] = loaded(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
        used = {target["datasource"]["uid"] for panel in panels() for target in panel.get("targets", [])}
        assert used == {source["uid"]}
        assert urlsplit(source["url"]).hostname in compose()


class TestCompose:
    def test_monitoring_starts_only_when_asked_for(self) -> None:
        profiles = {name: service.get("profiles") for name, service in compose().items()}
        assert profiles == {"jetstream": None, "prometheus": ["monitoring"], "grafana": ["monitoring"]}

    def test_images_have_versions_and_ports_are_local(self) -> None:
        for name in ("prometheus", "grafana"):
            assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", compose()[name]["image"])
            assert all(port.startswith("127.0.0.1:") for port in compose()[name]["ports"])

    def test_what_it_mounts_exists_and_is_where_it_is_looked_for(self) -> None:
        mounts = [volume.split(":") for one in compose().values() for volume in one["volumes"]]
        ours = {target: ROOT / source for source, target, *_ in mounts if source.startswith(".")}
        assert all(source.is_dir() for source in ours.values())
        [provider] = loaded(DEPLOY / "grafana/provisioning/dashboards/jetstream.yaml")["providers"]
        assert ours[provider["options"]["path"]] == FILE.parent
        home = Path(compose()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        assert home == Path(provider["options"]["path"]) / FILE.name
        [option] = [each for each in compose()["prometheus"]["command"] if "config.file" in each]
        config = Path(option.partition("=")[2])
        assert (ours[str(config.parent)] / config.name).exists()

    def test_prometheus_reads_the_server_and_the_alerts(self) -> None:
        config = loaded(DEPLOY / "prometheus" / "prometheus.yml")
        [job] = config["scrape_configs"]
        [target] = job["static_configs"][0]["targets"]
        host, port = target.split(":")
        assert f"{port}:{port}" in compose()[host]["ports"]
        assert config["rule_files"] == [ALERTS.name]
        assert 'job="jetstream"' in ALERTS.read_text()
        assert job["job_name"] == "jetstream"


class TestSettings:
    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
    def test_every_setting_that_an_example_names_exists(self, path: Path) -> None:
        text = path.read_text()
        assert set(re.findall(r"\bJETSTREAM_[A-Z_]+\b", text)) <= VARIABLES
        if path.suffix != ".sh":  # which has flags of PostgreSQL
            assert set(re.findall(r"(?<![\w-])--[a-z-]+\b", text)) <= FLAGS


class TestUnit:
    def test_it_starts_what_is_installed_and_stops_in_time(self) -> None:
        service = unit()["Service"]
        assert service["ExecStart"] == "/opt/jetstream/bin/jetstream serve"
        # With --edges, first the edges end, then the ingest. An edge alone drains for a while by default.
        needed_s = max(2 * SupervisorLimits().stop_s, SupervisorLimits().stop_s + RuntimeLimits().drain_s)
        assert int(service["TimeoutStopSec"].removesuffix("s")) > needed_s
        assert service["KillMode"] == "mixed"  # the first process gets the signal, and stops the others
        assert int(service["LimitNOFILE"]) >= 65_536

    def test_the_log_is_all_that_it_can_write(self) -> None:
        service = unit()["Service"]
        assert service["ProtectSystem"] == "strict"
        assert service["Environment"] == f"JETSTREAM_DATA_DIR=/var/lib/{service['StateDirectory']}"


CLUSTER = loaded(ROOT / "docker-compose.cluster.yaml")
CLUSTER_DEPLOY = DEPLOY / "cluster"


class TestCluster:
    services: ClassVar[dict[str, Any]] = CLUSTER["services"]
    ours: ClassVar[dict[str, Any]] = {
        name: service for name, service in services.items() if service["image"] == "jetstream-server"
    }

    def named(self, prefix: str) -> list[str]:
        return [name for name in self.services if name.startswith(prefix)]

    def test_it_has_a_database_with_a_standby_two_ingests_three_edges_and_one_address(self) -> None:
        assert {kind: len(self.named(kind)) for kind in ("postgres-", "ingest-", "edge-")} == {
            "postgres-": 2,
            "ingest-": 2,
            "edge-": 3,
        }
        published = {name: service.get("ports", []) for name, service in self.services.items()}
        assert {name: ports for name, ports in published.items() if ports} == {"balancer": ["6008:6008"]}

    def test_all_have_one_log_in_its_database_and_a_role(self) -> None:
        [log] = {service["environment"]["JETSTREAM_LOG"] for service in self.ours.values()}
        user, hosts = re.sub(r"\$\{[^}]*\}", "secret", log).removeprefix("postgresql://").split("@")
        assert hosts == f"{','.join(self.named('postgres-'))}/jetstream"
        database = self.services["postgres-1"]["environment"]
        assert (user, database["POSTGRES_DB"]) == (f"{database['POSTGRES_USER']}:secret", "jetstream")
        assert f":{database['POSTGRES_PASSWORD']}@" in log
        for name, service in self.ours.items():
            assert service["environment"]["JETSTREAM_ROLE"] == name.partition("-")[0]

    def test_every_setting_can_be_passed_in(self) -> None:
        alone = set(compose()["jetstream"]["environment"])
        for service in self.ours.values():
            assert set(service["environment"]) == alone - {"JETSTREAM_EDGES"}

    def test_its_processes_are_as_in_the_other_file(self) -> None:
        one = compose()["jetstream"]
        for service in self.ours.values():
            for key in ("build", "image", "restart", "ulimits", "read_only", "cap_drop", "security_opt"):
                assert service[key] == one[key]
            assert int(service["stop_grace_period"].removesuffix("s")) >= 20  # an edge drains for 10 s
            writable = [*service["tmpfs"], *(each.split(":")[1] for each in service.get("volumes", []))]
            assert writable == ["/tmp", "/data"]
            assert service["depends_on"].keys() == set(self.named("postgres-"))

    def test_images_have_versions_and_what_is_mounted_exists(self) -> None:
        for service in self.services.values():
            assert service["image"] == "jetstream-server" or re.fullmatch(
                r"\w+:\d+\.[\d.]+", service["image"]
            )
            for source, _, *options in (each.split(":") for each in service.get("volumes", [])):
                if source.startswith("."):
                    assert (ROOT / source).is_file()
                    assert options == ["ro"]
                else:
                    assert source in CLUSTER["volumes"]

    def test_the_balancer_knows_all_edges_and_they_believe_it(self) -> None:
        text = (CLUSTER_DEPLOY / "Caddyfile").read_text()
        lists = re.findall(r"reverse_proxy (?:@none )?([^{]+) \{", text)
        assert [each.split() for each in lists] == [[f"{name}:6008" for name in self.named("edge-")]] * 2
        assert set(self.services["balancer"]["depends_on"]) == set(self.named("edge-"))
        [network] = CLUSTER["networks"]["default"]["ipam"]["config"]
        for name in self.named("edge-"):
            assert network["subnet"] in self.services[name]["environment"]["JETSTREAM_TRUSTED_PROXIES"]

    def test_its_scripts_have_the_variables_that_they_use(self) -> None:
        by_image = {"PGDATA"}
        for name in self.named("postgres-"):
            known = set(self.services[name]["environment"]) | by_image
            for path in CLUSTER_DEPLOY.glob("*.sh"):
                text = path.read_text()
                assert set(re.findall(r"\$\{?([A-Z_]+)", text)) <= known
                subprocess.run(["sh", "-n", path], check=True)
            assert self.services[name]["environment"]["NAME"] == name
            assert f'"{name}"' in (CLUSTER_DEPLOY / "init.sh").read_text()
