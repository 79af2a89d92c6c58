from upt_benchmarks.machine import Machine
from upt_benchmarks.speeds import as_table, speeds_of
from upt_benchmarks.timing import Rounds

ROUNDS = Rounds(
    {
        "fp32/ours": {0: 100.0, 1: 200.0, 2: 100.0},
        "fp32/full": {0: 150.0, 1: 260.0, 2: 120.0},
        "fp32/adapters": {0: 140.0, 1: 280.0, 2: 150.0},
        "fp32/adapters_unsorted": {0: 300.0, 2: 500.0},
    }
)
MACHINE = Machine(
    cpu="C",
    cores=2,
    flags=("avx2",),
    memory_gib=None,
    system="s",
    versions={"torch": "2"},
    commit="c",
    date="d",
)


def words(line: str) -> str:
    return " ".join(line.split())


def test_a_ratio_is_the_median_of_the_rounds_and_is_held_against_its_bound() -> None:
    ours, full, adapters, unsorted = speeds_of("rte", ROUNDS, rows=64, mean_tokens=70.04)
    assert (ours.rows_per_s, ours.ratio, ours.verdict) == (640.0, 1.0, "")
    assert (full.rows_per_s, full.ratio, full.verdict) == (426.7, 1.3, "missed (1.4)")
    assert full.ci95 == (1.2, 1.5)
    assert (adapters.ratio, adapters.verdict) == (1.4, "missed (1.5)")
    assert (unsorted.ratio, unsorted.rounds, unsorted.verdict) == (4.0, 2, "")
    _, full, *_ = speeds_of("sst2", ROUNDS, rows=64, mean_tokens=13)
    assert full.verdict == "met (1)"


def test_the_table_names_machine_and_peers() -> None:
    speeds = list(speeds_of("rte", ROUNDS, rows=64, mean_tokens=70.04))
    about, beside, _, header, ours, full, *_ = as_table(
        speeds, MACHINE, {"adapters": "1.3.0"}
    ).splitlines()
    assert about == "C, 2 cores (avx2), torch 2, commit c, d"
    assert beside == "beside adapters 1.3.0"
    assert words(header) == "task tokens precision trained by rows/s ours is 95 % bound"
    assert words(ours) == "rte 70 fp32 ours 640.0"
    assert words(full) == "rte 70 fp32 full 426.7 1.30 x 1.20 to 1.50 missed (1.4)"
