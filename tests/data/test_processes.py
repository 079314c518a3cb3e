"""Work divided over processes comes back whole, in order and the same on all of them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from onbrand.data.processes import ALONE, Processes


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("items", [0, 1, 3, 8])
def test_results_come_back_in_order_each_computed_once(together, count, items):
    computed = []

    def square(number: int) -> int:
        computed.append(number)
        return number * number

    results = together(count, lambda processes: processes.map(square, range(items)))
    assert results == [[number * number for number in range(items)]] * count
    assert sorted(computed) == list(range(items))


def test_shares_are_disjoint_and_whole():
    shares = [Processes(index, 3).share("abcdefgh") for index in range(3)]
    assert shares == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]]
    assert [Processes(index, 3).is_main for index in range(3)] == [True, False, False]


def test_one_process_alone():
    ALONE.wait()
    assert ALONE.is_main
    assert ALONE.share([1, 2]) == [1, 2]
    assert ALONE.gather([3]) == [3]
    assert ALONE.map(str, [1, 2]) == ["1", "2"]


def test_a_share_may_be_worked_on_in_threads(together):
    def work(processes: Processes) -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return processes.map(str, range(9), apply=pool.map)

    assert together(2, work) == [[str(i) for i in range(9)]] * 2


def test_an_error_in_one_process_ends_them_all(together):
    def fail(number: int) -> int:
        if number in (4, 5):
            raise ValueError(f"number must be small, got {number}")
        return number

    errors = together(3, lambda processes: processes.map(fail, range(9)))
    assert [str(error) for error in errors] == ["number must be small, got 4"] * 3


def test_an_error_keeps_its_kind_where_it_happened():
    with pytest.raises(ZeroDivisionError):
        ALONE.map(lambda number: 1 // number, [1, 0])


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_index_out_of_range(index, count):
    with pytest.raises(ValueError, match=rf"process index must be in \[0, {count}\), got {index}"):
        Processes(index, count)
