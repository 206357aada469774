"""Who wins, what is a tie, and the targets: against numbers worked out by hand."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from pandas import DataFrame

from tests.benchmarks import fakes, targets, verdicts
from tests.benchmarks.plan import LAYER_CASES, LAYERS, Record, Run
from tests.benchmarks.summary import Results
from tests.benchmarks.verdicts import LOSES, TIES, TRADES, WINS, headline, lost

Figures = dict[int, Record]


def seeds(attacks: list[float], accuracies: list[float] | None = None) -> Figures:
    """Figures of a Trojan by seed."""
    accuracies = accuracies or [0.9] * len(attacks)
    pairs = zip(attacks, accuracies, strict=True)
    return {seed: fakes.trojan_figures(a, o) for seed, (a, o) in enumerate(pairs)}


BEFORE = fakes.trojan_figures()


def compare(case: str, own: Figures, other: Figures, before: Record) -> str | None:
    """Both as the tables have them, one row a seed."""

    def rows(by_seed: Figures) -> DataFrame:
        return DataFrame(
            [(headline(case, one, before), lost(one, before)) for one in by_seed.values()],
            index=list(by_seed),
            columns=["headline", "lost"],
        )

    return verdicts.compare(case, rows(own), rows(other), before)


@pytest.mark.parametrize(
    ("own", "other", "verdict", "text"),
    [
        ((0.01, 0.90), (0.05, 0.90), WINS, "ASR lower by 4.00, OA loss tie"),
        ((0.01, 0.90), (0.05, 0.88), WINS, "ASR lower by 4.00, OA loss smaller by 2.00"),
        ((0.01, 0.88), (0.05, 0.90), TRADES, "ASR lower by 4.00, OA loss larger by 2.00"),
        ((0.05, 0.90), (0.01, 0.88), TRADES, "ASR higher by 4.00, OA loss smaller by 2.00"),
        ((0.05, 0.90), (0.01, 0.90), LOSES, "ASR higher by 4.00, OA loss tie"),
        ((0.05, 0.88), (0.01, 0.90), LOSES, "ASR higher by 4.00, OA loss larger by 2.00"),
        ((0.05, 0.88), (0.05, 0.90), LOSES, "ASR tie, OA loss larger by 2.00"),
        ((0.05, 0.90), (0.05, 0.88), TIES, "ASR tie, OA loss smaller by 2.00"),
        ((0.05, 0.90), (0.05, 0.90), TIES, "ASR tie, OA loss tie"),
    ],
)
def test_every_verdict(
    own: tuple[float, float], other: tuple[float, float], verdict: str, text: str
) -> None:
    one, two = (seeds([attack] * 3, [accuracy] * 3) for attack, accuracy in (own, other))
    found = compare("trojan", one, two, BEFORE)
    assert found == f"{verdict}: {text}"


def test_what_the_seeds_cannot_tell_apart_is_a_tie() -> None:
    own = [0.02, 0.02, 0.02, 0.02]
    differences = [0.00, 0.02, 0.01, 0.03]
    error = statistics.stdev(differences) / 2
    mean = statistics.mean(differences)
    assert mean > verdicts.ERRORS * error  # so much for the case at hand
    other = [a + d for a, d in zip(own, differences, strict=True)]
    found = compare("trojan", seeds(own), seeds(other), BEFORE)
    assert str(found).startswith(f"{WINS}:")
    wide = [a + d for a, d in zip(own, [-0.01, 0.06, 0.03, -0.02], strict=True)]
    found = compare("trojan", seeds(own), seeds(wide), BEFORE)
    assert str(found).startswith(f"{TIES}:")


def test_pairs_of_seeds_are_compared_with_each_other() -> None:
    """Both vary wildly, but one is always 1 point better: that is no tie."""
    own = [0.02, 0.30, 0.10, 0.50]
    found = compare("trojan", seeds(own), seeds([a + 0.01 for a in own]), BEFORE)
    assert str(found).startswith(f"{WINS}:")
    turned = dict(reversed(seeds([a + 0.01 for a in own]).items()))
    again = compare("trojan", seeds(own), turned, BEFORE)
    assert again == found


def test_seeds_that_failed_are_left_out_of_both() -> None:
    other = seeds([0.5, 0.5, 0.0])
    del other[2]
    found = compare("trojan", seeds([0.1, 0.1, 0.9]), other, BEFORE)
    assert found == f"{WINS}: ASR lower by 40.00, OA loss tie"
    assert compare("trojan", seeds([0.1]), {}, BEFORE) is None
    assert compare("trojan", {0: BEFORE}, {1: BEFORE}, BEFORE) is None


def test_below_the_floor_there_is_nothing_to_win() -> None:
    before = fakes.trojan_figures(floor=0.006)
    found = compare("trojan", seeds([0.004]), seeds([0.0]), before)
    assert str(found).startswith(f"{TIES}:")
    found = compare("trojan", seeds([0.004]), seeds([0.007]), before)
    assert found == f"{WINS}: ASR lower by 0.10, OA loss tie"


def test_headlines() -> None:
    several = {
        **fakes.trojan_figures(0.2),
        "attack_success_rate (0.3)": 0.001,
        "attack_success_rate (1.0)": 0.4,
    }
    assert headline("trojan-visibility", several, BEFORE) == pytest.approx((0.2 + 0.005 + 0.4) / 3)
    spurious = fakes.spurious_figures(-0.03)
    assert headline("spurious-mild", spurious, spurious) == pytest.approx(0.03)
    assert headline("leakage", fakes.leakage_figures(0.7), fakes.leakage_figures(4.0)) == 0.7


def test_least_differences_of_each_behaviour() -> None:
    def verdict(case: str, own: Record, other: Record, before: Record) -> str:
        return str(compare(case, {0: own}, {0: other}, before)).partition(":")[0]

    trojan = fakes.trojan_figures
    assert verdict("trojan", trojan(0.1), trojan(0.1004), BEFORE) == TIES
    assert verdict("trojan", trojan(0.1), trojan(0.1006), BEFORE) == WINS
    spurious = fakes.spurious_figures
    assert verdict("spurious-mild", spurious(0.02), spurious(-0.0215), spurious(0.1)) == TIES
    assert verdict("spurious-mild", spurious(0.02), spurious(-0.0225), spurious(0.1)) == WINS
    leakage = fakes.leakage_figures
    assert verdict("leakage", leakage(1.0), leakage(1.03), leakage(4.0)) == TIES
    assert verdict("leakage", leakage(1.0), leakage(1.05), leakage(4.0)) == WINS


# -- targets --------------------------------------------------------------------------------------


def goals(records: list[Record]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Rows of the table by case, n and target."""
    table = targets.target_table(Results(records))
    return {(str(r["case"]), str(r["n"]), str(r["target"])): dict(r) for r in table.rows}


def test_nothing_measured_is_nothing_met() -> None:
    found = goals([])
    assert {row["met"] for row in found.values()} == {"not measured"}
    assert {row["measured"] for row in found.values()} == {"–"}
    assert {case for case, _, _ in found} > {"trojan", "trojan-position", "leakage"}


def test_targets_of_a_trojan() -> None:
    records = [
        fakes.before("trojan", BEFORE),
        *fakes.many("trojan", "dynamic", list(seeds([0.005, 0.014], [0.90, 0.897]).values())),
        *fakes.many("trojan", "dynamic", list(seeds([0.003, 0.003]).values()), n=20),
    ]
    found = goals(records)
    assert found["trojan", "1", "ASR ≤ 1.0"]["met"] == "yes"
    assert found["trojan", "1", "ASR ≤ 1.0"]["measured"] == "0.95 ± 0.64"
    assert found["trojan", "1", "ASR ≤ 1.0"]["seeds"] == 2
    assert "0.50" in found["trojan", "1", "ASR ≤ 1.0"]["remark"]
    assert found["trojan", "1", "OA loss ≤ 0.1"]["met"] == "no"
    assert found["trojan", "20", "ASR ≤ 0.2"]["met"] == "no"
    assert found["trojan", "20", "OA loss ≤ 0.1"]["met"] == "yes"


def test_beating_the_others_is_counted() -> None:
    def of(method: str, attack: float, n: int = 1) -> list[Record]:
        return fakes.many("trojan", method, [fakes.trojan_figures(attack)] * 2, n=n)

    records = [
        fakes.before("trojan", BEFORE),
        *of("dynamic", 0.01),
        *of("static", 0.3),
        *of("p_clarc", 0.2),
        *of("a_clarc", 0.01),
        *of("dynamic", 0.01, n=5),
        *of("p_clarc", 0.005, n=5),
    ]
    failed = fakes.record(Run("trojan", "rr_clarc", "all", 1, 0), failure="RuntimeError: NaN")
    found = goals([*records, failed])
    assert found["trojan", "1", "beats static"]["met"] == "yes"
    row = found["trojan", "1, 5", "beats every peer"]
    assert row["met"] == "no"
    assert row["measured"] == "dynamic wins: 1, tie: 1, dynamic loses: 1"
    assert row["remark"] == "1 failed and are not counted"


def ranking(case: str, pair: int, default: float, papers: float) -> Record:
    layers = {
        name: {"regret": default, "spearman": 1 - default, "layer": "a"}
        for name in ("edit-attribution", "prediction alone", "trial")
    }
    layers["projection"] = {"regret": papers, "spearman": 0.5, "layer": "b"}
    return fakes.record(Run(case, LAYERS, "all", 1, pair), layers=layers)


def test_targets_of_the_layers() -> None:
    every = [ranking(case, pair, 0.02, 0.5) for case in LAYER_CASES for pair in range(2)]
    prefix = "default ranking beats the paper's score on every case"
    found = goals(every)
    mean = found["all Trojans", "1", "mean regret of the default ranking ≤ 3.0"]
    assert (mean["met"], mean["measured"], mean["seeds"]) == ("yes", "2.00 ± 0.00", 12)
    assert found["all Trojans", "1", f"{prefix}: regret"]["met"] == "yes"
    assert found["all Trojans", "1", f"{prefix}: spearman"]["measured"] == "6 of 6 cases"
    part = goals(every[:4])
    assert part["all Trojans", "1", f"{prefix}: regret"]["met"] == "partly measured"
    worse = goals([*every, ranking("trojan", 0, 0.9, 0.3)])
    row = worse["all Trojans", "1", f"{prefix}: regret"]
    assert (row["met"], row["remark"]) == ("no", "not trojan")
    assert worse["all Trojans", "1", f"{prefix}: spearman"]["met"] == "yes"
    assert worse["all Trojans", "1", "mean regret of the default ranking ≤ 3.0"]["met"] == "no"
