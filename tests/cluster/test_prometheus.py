"""Tests of cluster/prometheus: valid files that use exported metrics only."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

from segrec_batch.pipeline.metrics import EXPORTED

FOLDER = Path(__file__).parents[2] / "cluster" / "prometheus"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = FOLDER / "grafana" / "segrec.json"

TODO, COMMITTED = "todo_images", "last_commit_timestamp_seconds"
INDEXED, FAILED = ('images_total{outcome="%s"}' % outcome for outcome in ("indexed", "failed"))  # noqa: UP031
BUSY, STARVED = ('stage_seconds_total{stage="%s"}' % s for s in ("segment", "starved"))  # noqa: UP031
HANGS = {TODO: "9000x60", COMMITTED: "0x60"}
CASES = {  # what a job exports each minute; which alerts fire, by minute
    "all is well, and the job ends": (
        {
            TODO: "9000-100x30 _x60", COMMITTED: "0+60x30 _x60",
            INDEXED: "0+100x30 3000x60", FAILED: "9x90",
            BUSY: "0+50x30 1500x60", STARVED: "0+2x30 60x60",
        },
        {30: [], 80: []},
    ),
    "it hangs before the first part": (HANGS, {10: [], 50: ["NoCommit", "NoProgress"]}),
    "it stops": (HANGS | {INDEXED: "1000x60"}, {10: [], 50: ["NoCommit", "NoProgress"]}),
    "many fail, and the model waits": (
        {
            TODO: "9000-100x60", COMMITTED: "0+60x60", INDEXED: "0+90x60", FAILED: "0+10x60",
            BUSY: "0+30x60", STARVED: "0+30x60",
        },
        {5: [], 50: ["ActorsStarved", "ManyFailures"]},
    ),
    "few images, all of which fail": (
        {TODO: "900-10x60", COMMITTED: "0+60x60", FAILED: "0+10x60"}, {50: []}
    ),
}  # fmt: skip


def rule_test(series: dict[str, str], firing: dict[int, list[str]]) -> dict[str, Any]:
    """A test of `promtool test rules`."""
    return {
        "interval": "1m",
        "input_series": [
            {"series": f"ray_segrec_{name}", "values": values} for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="Segrec{name}"}}', "value": 1} for name in names
                ],
            }
            for minute, names in firing.items()
        ],
    }


@pytest.fixture(scope="module")
def promtool() -> str:
    result = shutil.which("promtool")
    if result is None:
        assert os.environ.get("CI") != "true", "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is not installed")
    return result


def check(*command: object) -> str:
    completed = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=FOLDER)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout + completed.stderr


def expressions() -> list[str]:
    """All that the dashboard asks Prometheus."""
    board = json.loads(DASHBOARD.read_text())
    of_panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [*of_panels, board["templating"]["list"][1]["query"]["query"]]


def test_configuration_finds_rules(promtool: str, tmp_path: Path) -> None:
    files = shutil.copytree(FOLDER, tmp_path / "prometheus")
    (files / "ray_token").write_text("secret")  # whose absence promtool finds
    assert "1 rule files found" in check(promtool, "check", "config", files / "prometheus.yml")


def test_rules_are_valid(promtool: str) -> None:
    assert "5 rules found" in check(promtool, "check", "rules", ALERTS)


@pytest.mark.parametrize("case", CASES)
def test_alerts_fire(case: str, promtool: str, tmp_path: Path) -> None:
    test = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m"}
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({**test, "tests": [rule_test(*CASES[case])]}))
    check(promtool, "test", "rules", file)


def test_dashboard_queries_parse(promtool: str, tmp_path: Path) -> None:
    queries = [e for e in expressions() if not e.startswith("label_values")]
    rules: list[dict[str, Any]] = [
        {"record": f"query:{i}", "expr": expr.replace("$run", ".*")}
        for i, expr in enumerate(queries)
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in check(promtool, "check", "rules", file)


def test_alerts_and_dashboard_use_exported_metrics() -> None:
    names = re.compile(r"\bray_\w+")
    alerts = set(names.findall(ALERTS.read_text()))
    series = {name for expression in expressions() for name in names.findall(expression)}
    rays_own = alerts - EXPORTED
    assert rays_own == {"ray_memory_manager_worker_eviction_total"}
    assert all(name in Path(default_dashboard_panels.__file__).read_text() for name in rays_own)
    assert series == EXPORTED
