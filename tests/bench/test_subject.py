"""Running a benchmark from Python and from the command line: what is printed, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from mintbook import bench, cli
from mintbook.bench.benchmark import Findings, Target
from mintbook.bench.results import COLUMNS
from mintbook.bench.row import Row
from mintbook.bench.setting import Setting
from mintbook.errors import ConfigError, MintbookError


class Stub:
    name = "decode"
    targets: ClassVar[dict[str, Target]] = {"over_base": Target(1.3)}
    wrong = False

    def protocol(self, setting: Setting) -> str:
        return f"quick is {setting.quick}"

    def measure(self, setting: Setting, say: Callable[[str], None]) -> Findings:
        say("measuring")
        if self.wrong:
            raise MintbookError("an answer is wrong")
        return Findings([Row("1x1", "mintbook", "wall", 1.5, "ms")], {"over_base": 1.23456}, {"vllm": "it is not here"})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    stub = Stub()
    monkeypatch.setitem(bench.SUBJECTS, "decode", stub)
    monkeypatch.chdir(tmp_path)
    return stub


def test_the_command_line_knows_every_benchmark() -> None:
    assert tuple(bench.SUBJECTS) == cli.BENCHMARKS
    assert all(getattr(bench, name) for name in bench.SUBJECTS)


@pytest.mark.usefixtures("stub")
def test_the_last_line_is_the_ratios(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "decode", "--quick", "--threads", "1"]) == 0
    *told, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {"over_base": 1.235}
    assert "quick is True" in "\n".join(told) and "it is not here" in "\n".join(told)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("stub")
def test_rows_are_appended_under_one_heading(tmp_path: Path) -> None:
    for _ in range(2):
        assert cli.main(["bench", "decode", "--threads", "1", "--out", str(tmp_path / "new")]) == 0
    heading, *rows = (tmp_path / "new" / "decode.csv").read_text(encoding="utf-8").splitlines()
    assert heading == ",".join(COLUMNS)
    assert len(rows) == 2 and all(row.endswith("quick is False,1x1,mintbook,wall,1.5,ms") for row in rows)


@pytest.mark.usefixtures("stub")
def test_without_a_checkout_rows_are_kept_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mintbook.bench.machine.ROOT", tmp_path)
    assert bench.decode(threads=1).kept_in == str(Path("mintbook-bench") / "decode.csv")
    assert (tmp_path / "mintbook-bench" / "decode.csv").is_file()


def test_a_wrong_answer_writes_nothing(stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.wrong = True
    assert cli.main(["bench", "decode", "--threads", "1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().endswith("mintbook: an answer is wrong")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("stub")
def test_a_file_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "decode.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has the columns a, b"):
        bench.decode(threads=1, out=tmp_path)
    assert (tmp_path / "decode.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"


@pytest.mark.parametrize("threads", [0, 10_000])
def test_threads_that_are_not_there_are_refused(threads: int) -> None:
    with pytest.raises(ConfigError, match="this process may use 1 to"):
        Setting(threads=threads)
