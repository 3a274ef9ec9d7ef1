"""The page says what was found, is offline, small and whole; the figures are legible in size."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chromium
import numpy as np
import polars as pl
import pytest
from matplotlib import image
from measured_arrays import measured, scored
from PIL import Image
from synthetic_run import DOMAINS, LAYERS, SyntheticRun, ladder, pick_strength, three_times

from banpick_exp.analysis import subtasks
from banpick_exp.errors import UserError
from banpick_exp.evaluation.calibration import arrays
from banpick_exp.report import command
from banpick_exp.report.figures.heat_map import heat_map
from banpick_exp.report.figures.styles import STYLES, family_styles
from banpick_exp.report.files import write_report
from banpick_exp.report.maps import maps_of
from banpick_exp.report.page.heat_maps import picture
from banpick_exp.report.page.page import LARGEST, page_html
from banpick_exp.report.page.scatter import ticks
from banpick_exp.report.page.section import Section, by_run
from banpick_exp.report.page.sections import SECTIONS
from banpick_exp.report.run import Run, read_run
from banpick_exp.run_folder import RunFolder

pytestmark = pytest.mark.slow

ARTIFACTS = Path(os.environ.get("TEST_ARTIFACTS", Path(__file__).resolve().parents[2] / "build" / "test-artifacts"))
CALIBRATION = "0123456789abcdef"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = pick_strength(ladder(SyntheticRun(problems=300)))
    run.add("pick", {"boost": 8}, status="failed", reason="the engine stopped [Errno 12] <cause>")
    run.add("fixed_k", {"k": 1}, status="invalid", reason="measured 8.00 kept where k=1 implies 1", kept=8)
    outputs = tmp_path_factory.mktemp("outputs")
    count_usage(run)
    calibrate(run, outputs)
    return run.write(outputs / "pick_strength" / "first")


def read(run_dir: Path) -> Run:
    return read_run(RunFolder(run_dir))


def count_usage(run: SyntheticRun, layers: int = LAYERS, experts: int = 32) -> None:
    """Give every point counters as an engine has them: `tokens` [L] and `usage` [L, E] by domain."""
    rng = np.random.default_rng(0)
    for record in run.records:
        counters = {
            name: {"tokens": [1000] * layers, "kept": [8000] * layers,
                   "usage": rng.integers(0, 500, (layers, experts)).tolist()}
            for name in DOMAINS
        }  # fmt: skip
        kept = record.mean_kept if record.metrics else 8.0
        stock = {"stock_counters": counters} if record.is_stock else {}
        implied = {name: [kept, kept] for name in DOMAINS}
        run.change(record, engagement={"counters": counters, "implied": implied, **stock})


def calibrate(run: SyntheticRun, outputs: Path, layers: int = LAYERS, experts: int = 32) -> None:
    """An artifact beside the runs, and points that followed it."""
    rng = np.random.default_rng(1)
    domains = {name: measured(layers, experts) for name in DOMAINS}
    folder = outputs / "calibrations" / CALIBRATION
    arrays.save_artifact(folder, CALIBRATION, domains, {"model": {"name": "tiny", "identity": "x"}, "settings": {}})
    scores = {name: scored(rng.random((layers, experts))) for name in DOMAINS}
    arrays.save_scores(folder, "insertion_kl", scores, {})
    for record in run.records:
        if record.policy_name == "pick":
            run.change(record, calibration=CALIBRATION, score="insertion_kl")


@pytest.fixture(scope="module")
def written(run_dir: Path) -> list[Path]:
    return write_report(read(run_dir))


def test_picture_is_print_quality(written: list[Path]) -> None:
    picture = image.imread(written[1])
    assert written[1].name == "pareto.png" and picture.shape[1] == 2700 and picture.shape[0] >= 1000
    ink = (picture[..., :3].min(axis=2) < 0.9).mean()
    assert 0.01 < ink < 0.25  # neither blank nor black
    blue = np.abs(picture[..., :3] - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=2) < 0.02
    assert blue.sum() > 5000  # pick's points are drawn


def test_figures_for_papers_have_their_resolution(written: list[Path]) -> None:
    assert [path.name for path in written] == ["knobs.png", "pareto.png", "usage.png", "influence.png", "report.html"]
    for path in written[:-1]:
        with Image.open(path) as picture_:
            assert round(picture_.info["dpi"][0]) == 300 and min(picture_.size) > 600


def test_page_is_self_contained(written: list[Path]) -> None:
    page = written[-1].read_text()
    assert written[-1].name == "report.html" and len(page.encode()) < LARGEST == 3_000_000
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", page)


def test_page_has_every_section_in_its_order(written: list[Path]) -> None:
    page = written[-1].read_text()
    places = [page.index(f'<section id="{section.key}">') for section in SECTIONS]
    assert places == sorted(places) and SECTIONS[0].key == "verdict"
    verdict = page[places[0] : places[1]]
    assert "No gain: 16 of 16 pick points tie or lose" in verdict
    assert "23 of 25 points are done (1 invalid, 1 failed): model tiny, task tiny test, 900 problems" in verdict


def test_page_has_every_point_with_its_numbers(written: list[Path], run_dir: Path) -> None:
    page = written[-1].read_text()
    for row in read(run_dir).frame.filter(pl.col("status") == "done").iter_rows(named=True):
        assert row["label"] in page and f"<code>{row['command']}</code>" in page
        accuracy = f"{100 * row['accuracy']:.1f} [{100 * row['accuracy_lo']:.1f}, {100 * row['accuracy_hi']:.1f}]"
        assert f'"{accuracy}"' in page  # under the pointer, of every domain
        if row["domain"] == "overall":
            assert f"<td>{accuracy}</td>" in page
    for domain in ("overall", *DOMAINS):
        assert f'<option value="{domain}">' in page and page.count(f'data-domain="{domain}"') == 2
    for name in ("fixed_k ladder", "stock"):  # the ladder is drawn and named
        assert f">{name}</text>" in page
    assert "the engine stopped [Errno 12] &lt;cause&gt;" in page and "measured 8.00 kept where k=1 implies 1" in page


def test_sub_tasks_are_shown_as_measured(written: list[Path], run_dir: Path) -> None:
    run, page = read(run_dir), written[-1].read_text()
    for row in subtasks(run.records, run.outcomes).iter_rows(named=True):
        text = f"{100 * row['difference']:+.1f} [{100 * row['lo']:+.1f}, {100 * row['hi']:+.1f}]"
        table = page[page.index(f"<caption>{row['domain']}: accuracy, and differences") :]
        line = re.search(rf'<tr><th scope="row">{re.escape(row["label"])}</th>.*?</tr>', table)
        assert line and re.search(rf"[ >]{re.escape(text)}</td></tr>$", line.group())


def test_heat_maps_hold_their_numbers() -> None:
    values = np.random.default_rng(0).random((4, 32))
    html = picture(values, "math: stock", "share of tokens", (0.0, float(values.max())))
    found = re.search('data-values="([^"]+)"', html)
    assert found is not None
    read = np.frombuffer(base64.b64decode(found.group(1)), "<u2").reshape(4, 32) / 65535 * values.max()
    assert np.abs(read - values).max() < 1e-5
    alternative = re.search('alt="([^"]+)"', html)
    layer, expert = np.unravel_index(values.argmax(), values.shape)
    assert alternative and alternative.group(1).endswith(f"the largest: layer {layer}, expert {expert}")


def test_the_drawn_policy_can_be_chosen(run_dir: Path) -> None:
    run = read(run_dir)
    maps = maps_of(run, "pick boost=1 key_experts=4")
    assert maps.policy is not None and maps.policy.label == "pick boost=1 key_experts=4"
    counters = maps.policy.engagement.counters["math"]
    assert np.allclose(maps.policy_usage["math"], np.array(counters.usage) / 1000)
    best = maps_of(run).policy
    assert best is not None and best.policy_name == "pick"


def test_several_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (ladder(SyntheticRun(seed=seed, problems=50), ks=(4,)) for seed in (1, 2))
    other.add("ban", {"lambda": 0.5}, kept=4.1, model="control")
    folders = [run.write(tmp_path / name) for run, name in ((one, "ban/first"), (other, "ban/second"))]
    path = tmp_path / "both.html"
    assert command.run([*map(str, folders), "--output", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [*(str(folder / "pareto.png") for folder in folders), str(path)]
    page = path.read_text()
    assert page.index("<caption>The runs</caption>") < page.index("No verdict")
    assert "A: ban/first" in page and "B: ban/second (control, tiny)" in page
    assert 'class="point r0"' in page and 'class="point r1"' in page  # the runs differ in colour
    table = page.split("<caption>The runs side by side, all domains</caption>")[1].split("</table>")[0]
    lines = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table))
    assert list(lines) == ["none", "fixed_k k=4", "ban lambda=0.5"]
    assert all(line.count("<td") == 10 for line in lines.values())
    assert lines["fixed_k k=4"].count("<td>reference</td>") == 2 and lines["ban lambda=0.5"].count("<td>-</td>") >= 5


def test_text_cannot_become_markup(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=20), ks=(4,))
    command = "python </script><script>alert(1)</script>"
    run.change(run.records[1], label="fixed_k <b>&amp;", command=command)
    found = read(run.write(tmp_path))
    page = page_html([found], [maps_of(found)])
    assert "<b>&amp;" not in page.split("<script")[0] and "fixed_k &lt;b&gt;&amp;amp;" in page
    assert page.count("<script") == page.count("</script>") == 2 and "\\u003c/script>\\u003cscript>alert" in page


def test_a_page_of_a_large_model_can_still_be_mailed(tmp_path: Path) -> None:
    run = ladder(SyntheticRun(problems=20))
    for i in range(50):
        run.add("pick", {"boost": i / 10, "key_experts": 4}, churn=0.05)
    count_usage(run, layers=94, experts=128)
    calibrate(run, tmp_path, layers=94, experts=128)
    found = read(run.write(tmp_path / "sweep" / "run"))
    page = page_html([found], [maps_of(found)])
    assert 500_000 < len(page.encode()) < LARGEST


def test_every_figure_survives_a_run_without_counters(tmp_path: Path) -> None:
    files = write_report(read(ladder(SyntheticRun(problems=20), ks=(4,)).write(tmp_path)))
    assert [path.name for path in files] == ["pareto.png", "report.html"]
    page = files[-1].read_text()
    assert "hold no counters" in page and "followed no calibration" in page
    assert "Every policy of this run keeps the same number of experts in every layer" in page


def test_what_is_no_run_is_answered_with_what_to_type(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "run.json").write_text('{"command": "python -m banpick_exp +sweep=pick_strength"}')
    failed = SyntheticRun(problems=3)
    failed.add("none", status="failed", reason="no memory")
    failed.write(tmp_path / "failed")
    for typed, expected in (
        ([str(tmp_path / "nowhere")], "is no folder.*Type the folder that a sweep printed, e.g. outputs/"),
        ([str(run_dir.parent.parent)], f"has no points/.*Type one of these: {re.escape(str(run_dir))}"),
        ([str(run_dir / "points")], f"Type one of these: {re.escape(str(run_dir))}"),
        ([str(tmp_path / "failed")], "1 points and none is done.*no memory.*resume="),
        ([str(run_dir), "--policy", "pick boost=3"], 'is no finished policy.*Type one of: .*"pick boost=1 key_'),
        ([str(run_dir), "--output", str(tmp_path / "no" / "x.html")], "there is no folder"),
        ([], "required: RUN.*Type python -m banpick_exp report --help"),
    ):
        with pytest.raises(UserError, match=expected):
            command.run(typed)
    text = command.help_page()
    assert "report.html" in text and "--policy" in text and "side by side" in text


def test_the_former_name_of_the_command_goes_on_working(tmp_path: Path) -> None:
    run_dir = ladder(SyntheticRun(problems=20), ks=(4,)).write(tmp_path / "sweep" / "run")
    found = subprocess.run(
        [sys.executable, "-m", "banpick_exp.report", str(run_dir)], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    pareto, page, empty, *verdict = found.stdout.splitlines()
    assert [pareto, page, empty] == [str(run_dir / name) for name in ("pareto.png", "report.html")] + [""]
    assert verdict[0].startswith("No verdict: "), "the answer is the last that is said"
    wrong = subprocess.run([sys.executable, "-m", "banpick_exp.report", "x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stderr.startswith("banpick: x is no folder")


def test_a_folder_name_is_no_pattern(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`x[1]` as a pattern means `x1`: nothing there, or another run's files, and every record would be set aside."""
    folder = shutil.copytree(run_dir, tmp_path / "out[a]" / "sweep*" / "x[1]")
    shutil.copytree(run_dir.parent.parent / "calibrations", tmp_path / "out[a]" / "calibrations")
    before = {path.name: path.read_bytes() for path in (folder / "points").iterdir()}
    assert command.run([str(folder)]) == 0
    names = ("knobs.png", "pareto.png", "usage.png", "influence.png", "report.html")
    printed = capsys.readouterr().out.splitlines()
    assert printed[: printed.index("")] == [str(folder / name) for name in names]
    assert {path.name: path.read_bytes() for path in (folder / "points").iterdir()} == before
    page = (folder / "report.html").read_text()
    assert "23 of 25 points are done" in page and "sweep*/x[1]" in page and "score insertion_kl" in page


def test_the_spread_of_repeats_is_on_the_page(tmp_path: Path) -> None:
    run = read(three_times().write(tmp_path / "pick" / "repeated"))
    page = write_report(run)[-1].read_text()
    assert "Repeats: 5 points ran 3 times" in page and "repeat=0; repeat=1; repeat=2" in page
    assert len(run.done) == 5 and set(run.frame["repeat"]) == {0}
    assert set(run.frame_of_all["repeat"]) == {0, 1, 2}, "points.parquet has all"


def test_a_section_is_a_module_and_a_line(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newcomer writes to add a section; every run of a page has its part."""

    def lengths_html(run: Run) -> str:
        tokens = {record.label: run.outcomes[record.fingerprint]["tokens"].to_numpy() for record in run.done}
        return f"<ul>{''.join(f'<li>{label}: {each.mean():.1f}</li>' for label, each in tokens.items())}</ul>"

    section = Section(key="ends", title="Lengths & ends", html=by_run(lengths_html))
    monkeypatch.setattr("banpick_exp.report.page.page.SECTIONS", [*SECTIONS, section])
    one = read(run_dir)
    page = page_html([one], [maps_of(one)])
    mean = np.mean([12 + i % 7 for i in range(900)])
    assert '<a href="#ends">Lengths &amp; ends</a></nav>' in page
    assert '<section id="ends"><h2>Lengths &amp; ends</h2><ul><li>' in page and f"none: {mean:.1f}</li>" in page
    both = page_html([one, read(run_dir)], [maps_of(one), maps_of(one)]).split('<section id="ends">')[1]
    assert both.count('<div class="run"><h3>') == 2 and "B: pick_strength/first" in both


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine: apt-get install chromium")
def test_hovering_a_point_tells_its_policy_and_command(run_dir: Path, written: list[Path]) -> None:
    """In a real browser: hover, click, the menu, the closer view, the keyboard and a heat map."""
    label, command = (
        "pick boost=4 key_experts=8",
        "python -m banpick_exp policy=pick policy.boost=4 policy.key_experts=8",
    )
    program = chromium.find()
    assert program is not None
    with chromium.browser(program) as tab:
        tab.open(written[-1])
        number = tab.evaluate(
            f"JSON.parse(document.getElementById('data').textContent).points.findIndex((p) => p.label === {label!r})"
        )
        told = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
        assert tab.evaluate(told) == ""
        x, y = tab.centre(f'.point[data-p="{number}"]')
        tab.mouse("mouseMoved", x, y)
        text = tab.evaluate(told)
        assert label in text and command in text and "accuracy %" in text
        frame = read(run_dir).frame.filter((pl.col("label") == label) & (pl.col("domain") == "overall"))
        assert f"{100 * frame['accuracy'].item():.1f} [" in text
        marks = f'.point[data-p="{number}"]'
        hot = f"[...document.querySelectorAll({marks!r})].every((mark) => mark.classList.contains('hot'))"
        assert tab.evaluate(hot)  # the same point is marked in every panel
        shot = tab.screenshot(ARTIFACTS / "report-hover.png")
        assert np.ptp(image.imread(shot)[..., :3]) > 0.9

        tab.evaluate("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
        tab.mouse("mousePressed", x, y)
        tab.mouse("mouseReleased", x, y)
        assert tab.evaluate("window.copied") == command and "Copied:" in tab.evaluate(told)

        tab.evaluate(
            "(() => { const m = document.getElementById('domain'); m.value = 'math';"
            " m.dispatchEvent(new Event('change')); document.getElementById('closer').click(); })()"
        )
        shown = "[...document.querySelectorAll('.pair:not([hidden])')].map((p) => p.className + p.dataset.domain)"
        assert tab.evaluate(shown) == ["pair closermath"]

        tab.mouse("mouseMoved", 1, 1)  # off the panel, or its new layout under the pointer counts as another move
        tab.evaluate("document.querySelector('.pair:not([hidden]) .point[tabindex=\"0\"]').focus()")
        first = tab.evaluate(told)
        tab.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        assert "Run it again" in first and tab.evaluate(told) not in ("", first)

        tab.mouse("mouseMoved", *tab.centre(".heat img"))
        assert re.search(r"layer \d+, expert \d+\s+-?0\.\d+ of all tokens", tab.evaluate(told))
        assert tab.errors == [] and all(url.startswith(("file:", "data:")) for url in tab.requested)


def test_ticks_are_round() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.913, 1.38, 6) == [1.0, 1.1, 1.2, 1.3]
    assert ticks(-2.0, 102.0, 6) == [0, 20, 40, 60, 80, 100]


def test_families_differ_in_marker_and_in_grey() -> None:
    assert len({str(marker) for _, marker, _ in STYLES.values()}) == len(STYLES) >= 15
    first = family_styles(["none", "fixed_k", "pick", "ban", "ban_pick"])
    assert len({colour for colour, *_ in first.values()}) == 5
    assert len({str(marker) for _, marker, _ in family_styles(["one", "two", "pick"]).values()}) == 3


def test_heat_map(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).random((4, 32)).tolist()
    matrix[1][2] = float("nan")
    path = heat_map(matrix, tmp_path / "influence.png", "Influence (math)", "KL, nats")
    picture = image.imread(path)
    assert picture.shape[1] > 1500 and np.ptp(picture[..., :3]) > 0.9
    with pytest.raises(ValueError, match="layer x expert"):
        heat_map([1.0, 2.0], tmp_path / "x.png", "", "")
    with pytest.raises(ValueError, match="finite"):
        heat_map([[float("nan")]], tmp_path / "x.png", "", "")
