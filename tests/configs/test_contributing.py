"""What CONTRIBUTING.md, the changelog and the set-up of the checks promise is there."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
QUICK = "pytest @tests/quick.txt"
# What the quick command has to cover, by the beginnings of names of tests.
COVERED = (
    "tests/unit/functional/",
    "tests/unit/batching/",
    "tests/unit/rollout/",
    "tests/configs/test_structure.py::test_module_imports_what_its_room_may",
    "tests/integration/test_lightning_citizen.py::test_ten_lines",  # a run of GRPO
    "tests/integration/test_sft.py::",
)


def test_the_quick_command_finds_what_it_has_to_cover():
    command = [sys.executable, "-m", *QUICK.split(), "--collect-only", "-q", "-n0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert [name for name in COVERED if f"\n{name}" not in f"\n{done.stdout}"] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_the_quick_command_is_documented(page):
    assert QUICK in (ROOT / page).read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = set(re.findall(r"\]\(([^)#:]+)\)", CONTRIBUTING))
    assert {"CHANGELOG.md", "examples/custom_reward.py"} <= links
    if not (ROOT / "docs").is_dir():  # its pages are looked for where there are any
        links = {link for link in links if not link.startswith("docs/")}
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_workflow_runs_the_checks_on_the_versions_that_are_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    versions = job["strategy"]["matrix"]["python-version"]
    assert f">={versions[0]}" == PROJECT["project"]["requires-python"]
    minors = [int(version.split(".")[1]) for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_hooks_run_the_tools_of_the_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] if repo["repo"] == "local" for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert tools == {"ruff", "mypy"}
    installed = {re.split("[<>=]", name)[0] for name in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert tools <= installed


def test_the_changelog_goes_by_versions():
    versions = re.findall(r"^## (\S+)", CHANGELOG, flags=re.MULTILINE)
    assert versions[:2] == ["Unreleased", PROJECT["project"]["version"]]
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
