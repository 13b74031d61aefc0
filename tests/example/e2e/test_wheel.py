"""The wheel: its contents, and the application installed from it without this checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.e2e.application import Installation
from tests.e2e.processes import PATIENCE, ROOT, Processes, clean_environment, until
from tests.stacks import Place

pytestmark = [pytest.mark.e2e, pytest.mark.thorough, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    [built] = folder.glob("*.whl")
    return built


def run(*arguments: str) -> None:
    """Run a command in the project's root, without a network."""
    done = subprocess.run(  # noqa: S603 - the tests' own arguments
        arguments, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_contains_the_packages_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    tops = {name.partition("/")[0] for name in files}
    assert {each for each in tops if not each.endswith(".dist-info")} == {
        *("beneath", "bus", "dependencies", "infra", "models", "services"),
    }
    assert [name for name in files if "test_" in name or "conftest" in name] == []
    assert "infra/db/migrations/versions/0002_inbox.py" in files
    assert "models/migrations/versions/0001_domain.py" in files
    queue = Path("infra/mq/drivers/sql")
    assert f"{queue}/migrations/versions/0001_queue.py" in files
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / queue).rglob("*.sql")}
    assert {name for name in files if name.endswith(".sql")} == sources != set()


def test_installed_wheel_starts_from_an_empty_directory(wheel: Path, processes: Processes, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    run(*(sys.executable, "-m", "pip", "--python", str(python)), *("install", "--no-deps", "--no-index", str(wheel)))
    # The packages of this environment replace the network. A .pth file in it, such as that of this
    # checkout, has no effect, because only those of the site directory are read.
    [site] = environment.glob("lib/python*/site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("".join(f"{each}\n" for each in sorted(others)))
    folder = tmp_path / "empty"
    folder.mkdir()
    where = processes.start(
        [str(python), "-c", "import beneath, bus; print(beneath.__file__, bus.__file__)"], cwd=folder
    )
    assert where.wait() == 0, where.stderr
    assert all(path.startswith(str(environment)) for path in where.stdout.split())

    installation = Installation(processes, folder, Place(), command=(str(environment / "bin" / "beneath"),))
    running = installation.start("all")
    running.sign_up("ada@example.com")
    until(lambda: installation.mails_to("ada@example.com"), "the welcome mail is there")
    running.stop()
