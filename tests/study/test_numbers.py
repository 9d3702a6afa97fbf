"""Mean, spread and noise, beside scipy's tests."""

import numpy as np
import pytest
from scipy import stats

from vfmtok.study.config import ColumnConfig
from vfmtok.study.numbers import Cell, compare, in_words, pooled_deviation, t95

PSNR, RFID = ColumnConfig("PSNR"), ColumnConfig("rFID", better="lower")


def test_quantiles_are_student_s():
    for freedom in range(1, 31):
        assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)
    assert t95(1000) == pytest.approx(stats.norm.ppf(0.975), abs=1e-3)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_two_rows_alone_are_compared_by_student_s_test(shift):
    random = np.random.default_rng(int(10 * shift))
    rows = [dict(enumerate(random.normal(mean, 1, 4))) for mean in (0, shift)]
    is_noise = stats.ttest_ind(*(list(row.values()) for row in rows)).pvalue > 0.05
    found = compare(Cell(rows[1], None), Cell(rows[0], None), PSNR, pooled_deviation(rows))
    better = np.mean(list(rows[1].values())) > np.mean(list(rows[0].values()))
    assert found == ("noise" if is_noise else "better" if better else "worse")


def test_rows_of_one_seed_use_what_the_others_know():
    several, one = {0: 1.0, 1: 1.2}, {0: 1.1}
    assert pooled_deviation([one, one]) is None
    deviation, freedom = pooled_deviation([several, one, {0: 3.0, 1: 3.4}])
    assert freedom == 2 and deviation == pytest.approx(np.sqrt((0.02 + 0.08) / 2))
    noise = (deviation, freedom)
    assert compare(Cell(one, None), Cell(several, None), PSNR, noise) == "noise"
    assert compare(Cell({0: 9.0}, None), Cell(several, None), PSNR, noise) == "better"
    assert compare(Cell({0: 9.0}, None), Cell(several, None), RFID, noise) == "worse"
    assert compare(Cell(one, None), Cell(several, None), PSNR, None) == "unknown"
    assert compare(Cell({}, None), Cell(several, None), PSNR, noise) == ""


def test_a_cell_in_words():
    assert in_words(Cell({0: 18.0, 1: 18.2}, 0.95, beside="noise"), PSNR) == "18.10 ± 0.14 ≈ [0.95]"
    assert in_words(Cell({0: 18.0}, None, beside="unknown"), PSNR) == "18.00"
    assert in_words(Cell({}, 3.0), PSNR) == "- [3]"


def test_of_facts_rows_are_not_compared():
    bits = ColumnConfig("bits", of="row", number="bits per image", better="neither")
    assert compare(Cell({0: 9.0}, None), Cell({0: 1.0}, None), bits, (0.0, 1)) == ""
