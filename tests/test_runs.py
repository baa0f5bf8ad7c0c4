import dataclasses
import json
import math
from pathlib import Path

import pytest
from made_reports import alone, comparison, made

from onnxcompress.errors import UsageError
from onnxcompress.report import SCHEMA, Report
from onnxcompress.runs import read_report, read_reports


def written(folder: Path, report: Report) -> Path:
    (folder / "a.json").write_text(report.as_json())
    return folder / "a.json"


@pytest.mark.parametrize("snr", [math.inf, -math.inf, 12.5])
def test_a_report_is_read_back_as_it_was(tmp_path: Path, snr: float) -> None:
    report = dataclasses.replace(
        made(), evaluation=comparison(snr=snr, largest_difference=0.0 if snr == math.inf else 1.0)
    )
    assert report.mixed is not None
    row = dataclasses.replace(report.mixed.rows[0], comparison=report.evaluation)
    report.mixed = dataclasses.replace(report.mixed, rows=(row,))
    assert read_report(written(tmp_path, report)) == report


def test_a_report_of_sensitivity_is_read_back_as_it_was(tmp_path: Path) -> None:
    found = alone()
    worst = comparison(snr=-math.inf, largest_difference=1.0)
    rows = (dataclasses.replace(found.rows[0], comparison=worst), *found.rows[1:])
    found = dataclasses.replace(found, rows=rows)
    path = tmp_path / "a.json"
    path.write_text(found.as_json())
    assert read_report(path) == found
    assert read_reports([str(path)]) == ([], [(str(path), found)])


def test_runs_and_sensitivity_do_not_go_together(tmp_path: Path) -> None:
    run, other = written(tmp_path, made()), tmp_path / "b.json"
    other.write_text(alone().as_json())
    with pytest.raises(UsageError, match=r"b\.json: is about sensitivity, expected a run's as .*a\.json is"):
        read_reports([str(run), str(other)])


WRONG: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("schema", "is no JSON"),
    "no text": (b"\xff\xfe\x00", "is no JSON"),
    "too deep": ("[" * 100_000, "is no JSON"),
    "an array": ("[]", "is no report"),
    "another document": ('{"rows": []}', "is no report"),
    "an earlier schema": ('{"schema": 1}', f"has the schema 1, expected {SCHEMA}"),
    "sensitivity of another schema": ('{"schema": 7, "content": ""}', "has the schema 7, expected 1"),
    "a part of sensitivity": ('{"schema": 1, "content": ""}', "has no version"),
    "a part": (json.dumps({"schema": SCHEMA, "version": "1"}), "has no recipe"),
    "a wrong field": (
        json.dumps({"schema": SCHEMA, "before": {"bytes": "1"}}),
        "before.bytes: is '1', expected integer",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_report_is_refused(tmp_path: Path, case: str) -> None:
    text, said = WRONG[case]
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=r"a\.json") as error:
        read_report(tmp_path / "a.json")
    assert said in str(error.value)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_report(tmp_path / "none.json")
