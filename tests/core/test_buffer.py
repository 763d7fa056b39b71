"""The buffer is fair over configs, keeps every limit, and asks for more in time."""

import datetime as dt
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.core.buffer import AHEAD, KNOWN_SECONDS, Buffer
from outbox.core.lane import PROBATION, QUICK_SECONDS, Held
from outbox.core.model import ConfigId, Delivery
from tests.ids import config_id, config_number

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def held(delivery: Delivery, start_before: float = 100.0) -> Held:
    return Held(delivery, NOW, 0.0, start_before)


def configs(claimed: list[Held]) -> list[ConfigId]:
    return [each.delivery.config_id for each in claimed]


def deliveries(config: int, count: int, start: int = 0) -> list[Held]:
    return [
        held(Delivery(str(UUID(int=start + n)), config_id(config), 1, 0, NOW, 1, "CREATE", "contact", "{}"))
        for n in range(count)
    ]


def take_all(buffer: Buffer) -> Counter[int]:
    taken: Counter[int] = Counter()
    while each := buffer.take():
        taken[config_number(each.delivery.config_id)] += 1
    return taken


def test_no_config_has_more_in_flight_than_its_limit() -> None:
    """The limit per config holds, and a finished POST makes room for one more."""
    buffer = Buffer(concurrency=100, per_config=5)
    buffer.put(deliveries(1, 20))
    assert take_all(buffer) == {1: 5}
    buffer.finished(config_id(1), timed_out=False)
    assert take_all(buffer) == {1: 1}


def test_configs_take_turns() -> None:
    """A config with much waiting does not go before one with little."""
    buffer = Buffer(concurrency=6, per_config=6)
    buffer.put(deliveries(1, 50))
    buffer.put(deliveries(2, 1, start=100))
    first = [config_number(each.delivery.config_id) for each in iter(buffer.take, None)]
    assert 2 in first[:2]


def test_some_slots_stay_free_however_many_configs_hang() -> None:
    """A config starts a POST only while it has fewer in flight than there are free slots."""
    buffer = Buffer(concurrency=20, per_config=20)
    for config in range(1, 5):
        buffer.put(deliveries(config, 40, start=1000 * config))
    take_all(buffer)
    assert buffer.in_flight < 20
    buffer.put(deliveries(9, 1, start=9000))
    assert take_all(buffer) == {9: 1}


def test_a_config_that_times_out_ends_with_one_slot_and_gets_them_back() -> None:
    """Each POST that timed out halves the limit, each answer adds one; it is remembered while nothing is in hand."""
    buffer = Buffer(concurrency=100, per_config=8)
    buffer.put(deliveries(1, 8))
    taken = take_all(buffer)
    for _ in range(taken[1]):
        buffer.finished(config_id(1), timed_out=True)
    buffer.measure(10.0)
    buffer.put(deliveries(1, 8, start=100))
    assert take_all(buffer) == {1: 1}
    started = 1
    for _ in range(8):
        buffer.finished(config_id(1), timed_out=False)
        started += take_all(buffer)[1]
    assert started == 8
    assert buffer.in_flight == 0


def test_rooms_follow_the_pace_of_a_config() -> None:
    """A fast config may have more waiting in hand, one that finishes nothing has room for its limit only."""
    buffer = Buffer(concurrency=100, per_config=10)
    rooms: dict[ConfigId, int] = {}
    for _ in range(20):
        buffer.put(deliveries(1, 100))
        buffer.put(deliveries(2, 1, start=5000) if not buffer.config_ids.count(config_id(2)) else [])
        while (each := buffer.take()) is not None:
            if config_number(each.delivery.config_id) == 1:
                buffer.finished(config_id(1), timed_out=False)
        buffer.measure(0.02)
        rooms = buffer.rooms()
    assert rooms[config_id(1)] > 50
    assert rooms[config_id(2)] < 10


def test_a_config_that_is_done_with_all_keeps_its_pace() -> None:
    """What was finished between two looks counts, also when a claim looks in between and finds nothing in hand."""
    buffer = Buffer(concurrency=100, per_config=10)
    room = 0
    for _ in range(20):
        buffer.put(deliveries(1, 10))
        buffer.measure(0.001)
        while buffer.take():
            buffer.finished(config_id(1), timed_out=False)
        room = buffer.rooms().get(config_id(1), 0)
        buffer.measure(0.01)
    assert room > 20


def test_a_config_that_may_be_owed_more_asks_when_a_quarter_is_done() -> None:
    """Whoever got all that he had room for asks again in time; whoever got less does not ask."""
    buffer = Buffer(concurrency=100, per_config=10)
    rooms = buffer.rooms()
    claimed = deliveries(1, 10) + deliveries(2, 3, start=100)
    buffer.put(claimed)
    buffer.note(configs(claimed), rooms=rooms, room=10, all_taken=True, governed=False, full=False)
    take_all(buffer)
    asked = [buffer.finished(config_id(1), timed_out=False) for _ in range(10)]
    assert asked == [False] * 2 + [True] * 8
    assert not any(buffer.finished(config_id(2), timed_out=False) for _ in range(3))


def test_of_a_governed_config_the_common_claim_says_nothing() -> None:
    """It does not look at what they are owed: that it came to the last config does not mean that they want no more."""
    buffer = Buffer(concurrency=100, per_config=2)
    claimed = deliveries(1, 2)
    buffer.put(claimed)
    buffer.note(configs(claimed), rooms={}, room=2, all_taken=False, governed=True, full=False)
    take_all(buffer)
    asked = [buffer.finished(config_id(1), timed_out=False)]
    buffer.note([], rooms=buffer.rooms(), room=2, all_taken=True, governed=False, full=False)
    asked.append(buffer.finished(config_id(1), timed_out=False))
    assert asked == [True, True]


def test_a_full_buffer_asks_again_when_half_is_done() -> None:
    """When the slots ran out, any config may be owed more."""
    buffer = Buffer(concurrency=AHEAD, per_config=1)
    claimed = [each for config in range(2 * AHEAD) for each in deliveries(config, 1, start=config)]
    buffer.put(claimed)
    buffer.note(configs(claimed), rooms={}, room=5, all_taken=False, governed=False, full=True)
    assert buffer.slots == 0
    asked = []
    while each := buffer.take():
        asked.append(buffer.finished(each.delivery.config_id, timed_out=False))
    assert asked.count(True) == AHEAD + 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30), st.booleans()), max_size=30))
def test_nothing_is_lost_or_handed_out_twice(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever the order of puts, ends and withdrawals, each delivery comes out once, and the counts stay true."""
    buffer = Buffer(concurrency=12, per_config=5)
    put: list[Held] = []
    out: list[Held] = []
    flying: list[Held] = []
    for config, count, timed_out in steps:
        batch = deliveries(config, count, start=len(put))
        buffer.put(batch)
        put += batch
        while (each := buffer.take()) is not None:
            flying.append(each)
        assert len(flying) == buffer.in_flight <= 12
        assert max(Counter(configs(flying)).values()) <= 5
        out += flying[::2]
        for each in flying[::2]:
            buffer.finished(each.delivery.config_id, timed_out=timed_out, seconds=count / 10)
        flying = flying[1::2]
        buffer.measure(count / 10)
    out += buffer.withdraw() + flying
    assert buffer.waiting == 0
    for each in flying:
        buffer.finished(each.delivery.config_id, timed_out=False)
    assert (buffer.room, buffer.in_flight) == (5, 0)
    for config in range(10, 30):
        buffer.put(deliveries(config, 1))
    assert sum(take_all(buffer).values()) == 9
    assert Counter(each.delivery.event_id for each in out) == Counter(each.delivery.event_id for each in put)


def test_what_can_not_begin_in_time_is_given_up() -> None:
    """A delivery that waited so long that its lease could run out is not sent."""
    buffer = Buffer(concurrency=10, per_config=1)
    [first, second] = [held(each.delivery, before) for each, before in zip(deliveries(1, 2), (5.0, 9.0), strict=True)]
    buffer.put([first, second])
    assert buffer.expired(5.0) == []
    assert buffer.expired(6.0) == [first]
    assert buffer.take() == second
    assert buffer.waiting == 0


def test_what_was_given_back_says_nothing_of_the_subscriber() -> None:
    """A slot that is given back without a POST changes neither the limit nor the pace."""
    buffer = Buffer(concurrency=100, per_config=8)
    buffer.put(deliveries(1, 8))
    for _ in range(take_all(buffer)[1]):
        buffer.finished(config_id(1), timed_out=True)
    buffer.put(deliveries(1, 8, start=100))
    started = 0
    while taken := take_all(buffer)[1]:
        assert taken == 1
        started += 1
        buffer.finished(config_id(1), timed_out=None)
    assert started == 8


def work(buffer: Buffer, answers: dict[int, int], *, turns: int, lag: float) -> None:
    """Let configs have so many answers in each of so many turns of 0.1 s; a turn of the loop takes `lag`."""
    for turn in range(turns):
        buffer.note_lag(lag)
        buffer.measure(0.1)
        for config, count in answers.items():
            buffer.put(deliveries(config, count, start=1_000_000 * config + 1000 * turn))
            for _ in range(count):
                buffer.take()
                buffer.finished(config_id(config), timed_out=False)


def in_flight_at_most(buffer: Buffer, config: int) -> int:
    buffer.withdraw()
    buffer.put(deliveries(config, 200, start=9_000_000 * config))
    return take_all(buffer)[config]


def owes_more(buffer: Buffer, config: int) -> None:
    """Note that a claim gave the config all that it asked for."""
    its = config_id(config)
    buffer.note([its], rooms={its: 1}, room=100, all_taken=False, governed=False, full=False)


def test_a_config_that_is_owed_much_and_is_quick_has_few_in_flight_while_others_keep_up() -> None:
    """Its answers would wait in the loop, and the others with them. When it is alone again it gets them back."""
    buffer = Buffer(concurrency=400, per_config=100)
    work(buffer, {1: 400, 2: 5}, turns=1, lag=0.01)
    owes_more(buffer, 1)
    work(buffer, {1: 400, 2: 5}, turns=10, lag=0.01)
    in_flight = {config: in_flight_at_most(buffer, config) for config in (1, 2)}
    assert in_flight[1] <= 2
    assert in_flight[2] > 90
    for config, count in in_flight.items():
        for _ in range(count):
            buffer.finished(config_id(config), timed_out=False)
    work(buffer, {1: 400}, turns=150, lag=0.01)
    assert in_flight_at_most(buffer, 1) > 90


def test_configs_that_are_all_owed_much_keep_what_they_have_in_flight() -> None:
    """However quick they are: nobody is there who would get on faster."""
    buffer = Buffer(concurrency=400, per_config=100)
    work(buffer, {1: 400, 2: 400}, turns=1, lag=0.01)
    owes_more(buffer, 1)
    owes_more(buffer, 2)
    work(buffer, {1: 400, 2: 400}, turns=10, lag=0.01)
    assert in_flight_at_most(buffer, 1) == 100


def test_a_config_that_is_slow_keeps_its_slots_however_slow_the_loop_is() -> None:
    """What it has in flight is on its way and not in the loop: 100 at a time, each answered after 0.2 s."""
    buffer = Buffer(concurrency=400, per_config=100)
    buffer.put(deliveries(1, 100))
    buffer.put(deliveries(2, 1))
    owes_more(buffer, 1)
    take_all(buffer)
    for turn in range(1, 60):
        buffer.note_lag(0.01)
        buffer.measure(0.1)
        buffer.put(deliveries(1, 50, start=1000 * turn))
        for _ in range(50):
            buffer.finished(config_id(1), timed_out=False)
        take_all(buffer)
    assert buffer.in_flight == 100 + 1


def test_no_more_start_than_their_configs_may_have_in_flight() -> None:
    """Tasks that would find nothing to send cost the loop a turn."""
    buffer = Buffer(concurrency=100, per_config=5)
    buffer.put(deliveries(1, 20))
    buffer.put(deliveries(2, 3, start=100))
    assert buffer.startable == 8
    assert sum(take_all(buffer).values()) == 8
    assert buffer.startable == 0


def test_a_config_that_is_alone_keeps_its_slots_however_slow_the_loop_is() -> None:
    """There is nobody whom it could have wait."""
    buffer = Buffer(concurrency=400, per_config=100)
    work(buffer, {1: 400}, turns=10, lag=0.01)
    assert in_flight_at_most(buffer, 1) == 100


def test_what_is_not_settled_counts_as_in_flight() -> None:
    """A crash leaves no more unknown outcomes than the concurrency."""
    buffer = Buffer(concurrency=10, per_config=10)
    buffer.put(deliveries(1, 20))
    taken = take_all(buffer)[1]
    for _ in range(taken):
        buffer.finished(config_id(1), timed_out=False)
        buffer.unsettled += 1
    assert buffer.unsettled == 4
    for config in range(2, 9):
        buffer.put(deliveries(config, 1, start=100 * config))
    assert sum(take_all(buffer).values()) == 6
    buffer.unsettled = 0
    assert sum(take_all(buffer).values()) > 0


def answer(buffer: Buffer, config: int) -> None:
    """Have a config send one that is answered soon."""
    buffer.put(deliveries(config, 1, start=1_000_000 + config))
    assert take_all(buffer) == {config: 1}
    buffer.finished(config_id(config), timed_out=False)


def all_time_out(buffer: Buffer, hanging: Counter[int]) -> None:
    for config, number in hanging.items():
        for _ in range(number):
            buffer.finished(config_id(config), timed_out=True, seconds=15.0)


def test_who_is_known_to_be_quick_finds_slots_however_many_others_hang() -> None:
    """Of those that were never heard of, or not lately, no more than three quarters of the slots are waiting."""
    buffer = Buffer(concurrency=40, per_config=10)
    answer(buffer, 999)
    for config in range(1, 100):
        buffer.put(deliveries(config, 2, start=1000 * config))
    assert sum(take_all(buffer).values()) == 30
    buffer.put(deliveries(999, 1, start=1))
    assert take_all(buffer) == {999: 1}


@pytest.mark.parametrize(
    ("seconds", "others", "most"),
    [(15.0, True, 10), (15.0, False, 10), (5.0, True, 20), (5.0, False, 20)],
    ids=["timed out", "timed out, nobody quick", "slow", "slow, nobody quick"],
)
def test_those_that_are_late_leave_slots_to_others(seconds: float, most: int, *, others: bool) -> None:
    """Who timed out has a quarter of the slots, who answers late a half."""
    buffer = Buffer(concurrency=40, per_config=1)
    if others:
        answer(buffer, 1000)
    for config in range(100):
        buffer.put(deliveries(config, 1, start=1000 * config))
        buffer.take()
        buffer.finished(config_id(config), timed_out=seconds == 15.0, seconds=seconds)
    buffer.measure(0.1)
    for config in range(100):
        buffer.put(deliveries(config, 1, start=1000 * config))
    assert buffer.startable == most
    assert sum(take_all(buffer).values()) == most
    assert buffer.startable == 0
    buffer.put(deliveries(999, 1, start=1))
    assert take_all(buffer) == {999: 1}


def test_slow_ones_that_have_been_alone_for_some_time_have_three_quarters() -> None:
    """At first somebody else may come; and so it is when somebody has."""
    buffer = Buffer(concurrency=40, per_config=1)
    buffer.note_failing({config_id(config) for config in range(100)})
    for config in range(100):
        buffer.put(deliveries(config, 1, start=1000 * config))
    buffer.measure(0.1)
    assert sum(take_all(buffer).values()) == 20
    buffer.measure(KNOWN_SECONDS)
    buffer.measure(0.1)  # those that wait have their turn now
    assert sum(take_all(buffer).values()) == 10
    buffer.put(deliveries(999, 1, start=1))
    assert take_all(buffer) == {999: 1}


def test_one_claim_brings_no_more_of_the_unknown_than_leaves_room_to_others() -> None:
    """After a restart thousands may be due for configs that hang, and nobody is known yet."""
    buffer = Buffer(concurrency=40, per_config=20)
    answer(buffer, 1000)
    count = buffer.claimable({})
    for number in range(count):
        buffer.put(deliveries(number % 300, 1, start=number))
    assert buffer.room > 0
    buffer.put(deliveries(1000, 1))
    rooms = {config_id(1000): 500}
    assert buffer.claimable(rooms) > 500
    assert buffer.claimable({}) < count


def test_who_failed_last_is_taken_for_slow_until_it_is_answered_soon() -> None:
    """As after a restart: it leaves slots to those of whom nothing is known, and is quick again at once."""
    buffer = Buffer(concurrency=40, per_config=10)
    buffer.note_failing({config_id(1)})
    buffer.put(deliveries(1, 2))
    buffer.put(deliveries(2, 2, start=100))
    take_all(buffer)
    assert buffer.in_flight_by_standing == {"timed_out": 0, "slow": 2, "unknown": 2, "quick": 0}
    buffer.finished(config_id(1), timed_out=False)
    assert buffer.in_flight_by_standing == {"timed_out": 0, "slow": 0, "unknown": 2, "quick": 1}


def test_it_tells_how_many_slots_each_standing_holds() -> None:
    """Whoever stands elsewhere takes what it has in flight along."""
    buffer = Buffer(concurrency=100, per_config=10)
    for config in (1, 2, 3):
        buffer.put(deliveries(config, 3, start=10 * config))
    take_all(buffer)
    assert buffer.in_flight_by_standing == {"timed_out": 0, "slow": 0, "unknown": 9, "quick": 0}
    buffer.finished(config_id(1), timed_out=True)
    buffer.finished(config_id(2), timed_out=False, seconds=QUICK_SECONDS + 1)
    buffer.finished(config_id(3), timed_out=False)
    assert buffer.in_flight_by_standing == {"timed_out": 2, "slow": 2, "unknown": 0, "quick": 2}
    for config in (1, 2, 3):
        for _ in range(2):
            buffer.finished(config_id(config), timed_out=None)
    assert not any(buffer.in_flight_by_standing.values())


def test_those_that_time_out_take_turns() -> None:
    """Whose last POST is longest ago goes first, also when what waited was given back meanwhile, and claimed again."""
    buffer = Buffer(concurrency=8, per_config=1)
    tried: Counter[int] = Counter()
    for _ in range(40):
        for config in range(20):
            if config_id(config) not in buffer.config_ids:
                buffer.put(deliveries(config, 1, start=1000 * config))
        hanging = take_all(buffer)
        tried += hanging
        all_time_out(buffer, hanging)
        buffer.withdraw()
        buffer.measure(15.0)
    assert set(tried) == set(range(20))
    assert max(tried.values()) - min(tried.values()) <= 2


def test_those_that_time_out_have_a_slot_however_much_the_others_have_to_send() -> None:
    """Whoever recovers must be able to show it."""
    buffer = Buffer(concurrency=8, per_config=8)
    for config in (1, 2):
        buffer.put(deliveries(config, 1))
    all_time_out(buffer, take_all(buffer))
    quick = range(10, 20)
    for config in quick:
        answer(buffer, config)
    for config in quick:
        buffer.put(deliveries(config, 100, start=1000 * config))
    taken = take_all(buffer)
    for config in (1, 2):
        buffer.put(deliveries(config, 1))
    for config, number in taken.items():
        for _ in range(number):
            buffer.finished(config_id(config), timed_out=False)
    taken = take_all(buffer)
    assert (taken[1], taken[2]) == (1, 0)
    buffer.finished(config_id(1), timed_out=True, seconds=15.0)
    assert take_all(buffer) == {2: 1}


def test_who_answers_again_waits_no_more_among_those_that_time_out() -> None:
    """All that it has in hand goes with what it is known for now."""
    buffer = Buffer(concurrency=16, per_config=4)
    for config in range(1, 9):
        buffer.put(deliveries(config, 20, start=1000 * config))
    for _ in range(10):
        all_time_out(buffer, take_all(buffer))
    hanging = take_all(buffer)
    assert sorted(hanging.values()) == [1, 1, 1, 1]
    recovered = max(hanging)
    buffer.finished(config_id(recovered), timed_out=False)
    assert take_all(buffer)[recovered] == 2


def test_who_was_quick_long_ago_is_known_for_it_no_more() -> None:
    """It finds slots among those of which nothing is known."""
    buffer = Buffer(concurrency=40, per_config=10)
    for config in (998, 999):
        answer(buffer, config)
        buffer.measure(KNOWN_SECONDS * 0.6)
        buffer.measure(KNOWN_SECONDS * 0.1)
    for config in range(1, 100):
        buffer.put(deliveries(config, 2, start=1000 * config))
    assert sum(take_all(buffer).values()) == 30
    for config in (998, 999):
        buffer.put(deliveries(config, 1, start=config))
    assert take_all(buffer) == {999: 1}


def hang_now_and_then(buffer: Buffer, sick: range) -> None:
    """Have each of them two that hang, while others are answered, and those of 999."""
    for config in (*sick, 999):
        answer(buffer, config)
    for config in sick:
        buffer.put(deliveries(config, 2, start=config))
    take_all(buffer)
    for _ in range(4):
        buffer.measure(0.6 * QUICK_SECONDS)
        for config in (*sick, 999):
            answer(buffer, config)
    buffer.measure(0.1)


def put_each(buffer: Buffer, among: range) -> None:
    for config in among:
        buffer.put(deliveries(config, 40, start=1000 * config))


def test_who_has_some_overdue_counts_as_slow_whatever_else_is_answered() -> None:
    """Of who hangs now and then, each that hangs has a slot for long."""
    buffer, sick = Buffer(concurrency=40, per_config=40), range(1, 4)
    hang_now_and_then(buffer, sick)
    put_each(buffer, sick)
    take_all(buffer)
    assert 10 < buffer.in_flight <= 20
    buffer.put(deliveries(999, 40))
    assert take_all(buffer)[999] >= 10


def test_who_was_late_is_known_to_be_quick_when_many_in_a_row_were_answered_soon() -> None:
    """Who hangs now and then would else be trusted again after each answer."""
    buffer, sick = Buffer(concurrency=40, per_config=40), range(1, 4)
    hang_now_and_then(buffer, sick)
    for config in sick:
        for _ in range(2):
            buffer.finished(config_id(config), timed_out=False, seconds=2 * QUICK_SECONDS)
    for _ in range(PROBATION):
        put_each(buffer, sick)
        assert 0 < buffer.startable <= 20
        buffer.withdraw()
        for config in sick:
            answer(buffer, config)
    put_each(buffer, sick)
    assert sum(take_all(buffer).values()) > 20


def test_who_is_known_to_be_quick_has_room_where_all_is_full_of_what_hangs() -> None:
    """Also while it has nothing in hand."""
    buffer = Buffer(concurrency=100, per_config=20)
    answer(buffer, 9999)
    buffer.measure(2.0)
    buffer.measure(2.0)
    for config in range(5000):
        buffer.put(deliveries(config, 1, start=1000 * config))
    assert config_id(9999) in buffer.rooms()
    assert buffer.room == 0


@pytest.mark.parametrize("concurrency", [2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 17, 31, 100, 200])
def test_one_slot_at_least_is_left_to_who_is_quick(concurrency: int) -> None:
    """However few there are, and whatever the others are known for."""
    buffer = Buffer(concurrency=concurrency, per_config=1)
    answer(buffer, 9999)
    for config in range(300):
        buffer.put(deliveries(config, 1, start=1000 * config))
        assert buffer.take()
        buffer.finished(config_id(config), timed_out=config % 3 == 0, seconds=15.0 if config % 3 < 2 else 0.01)
    buffer.measure(0.1)
    for config in range(300):
        if config % 3 < 2:
            buffer.put(deliveries(config, 1, start=1000 * config))
    for config in range(1000, 1300):
        buffer.put(deliveries(config, 1, start=1000 * config))
    assert 1 <= sum(take_all(buffer).values()) < concurrency
    buffer.put(deliveries(9999, 1))
    assert take_all(buffer) == {9999: 1}


def test_who_is_silent_starts_no_other() -> None:
    """So those that fall silent together take a slot or two each, and not as many as there are."""
    buffer = Buffer(concurrency=40, per_config=10)
    answer(buffer, 1)
    buffer.put(deliveries(1, 2))
    assert take_all(buffer) == {1: 2}
    buffer.measure(QUICK_SECONDS + 0.1)
    buffer.put(deliveries(1, 2, start=100))
    assert (buffer.startable, take_all(buffer)) == (0, {})
    buffer.finished(config_id(1), timed_out=False)
    assert (buffer.startable, take_all(buffer)) == (2, {1: 2})


def test_who_answers_late_starts_others_meanwhile() -> None:
    """What is known to take long is not awaited one by one."""
    buffer = Buffer(concurrency=40, per_config=10)
    buffer.put(deliveries(1, 2))
    assert take_all(buffer) == {1: 2}
    buffer.measure(3.0)
    buffer.finished(config_id(1), timed_out=False, seconds=3.0)
    buffer.measure(3.0)
    buffer.put(deliveries(1, 2, start=100))
    assert (buffer.startable, take_all(buffer)) == (2, {1: 2})


def test_who_is_owed_much_is_not_hungry_while_there_is_next_to_no_room() -> None:
    """Few at a time cost the database more, each."""
    buffer = Buffer(concurrency=100, per_config=20)
    for _ in range(10):
        for config in range(50):
            buffer.put(deliveries(config, 20))
            while buffer.take():
                buffer.finished(config_id(config), timed_out=False)
        buffer.measure(0.01)
    for config in range(50):
        buffer.put(deliveries(config, 90))
    taken = [config_id(config) for config in range(50) for _ in range(90)]
    buffer.note(taken, rooms={}, room=90, all_taken=False, governed=False, full=False)
    assert sum(buffer.rooms().values()) > 3 * buffer.slots
    assert (buffer.is_nearly_full, buffer.is_hungry) == (True, False)


def test_who_is_owed_much_is_hungry_where_what_hangs_fills_the_buffer() -> None:
    """There will not be more room soon, and what there is, is for those that are quick."""
    buffer = Buffer(concurrency=100, per_config=20)
    for _ in range(10):
        buffer.put(deliveries(9999, 20))
        while buffer.take():
            buffer.finished(config_id(9999), timed_out=False)
        buffer.measure(0.01)
    for _ in range(50):
        claim_half(buffer, 2000)
    assert buffer.slots < (buffer.slots + buffer.in_hand) // 4
    buffer.put(deliveries(9999, 1))
    buffer.note([config_id(9999)], rooms={}, room=1, all_taken=False, governed=False, full=False)
    buffer.rooms()
    assert (buffer.is_nearly_full, buffer.is_hungry) == (False, True)


def claim_half(buffer: Buffer, hanging: int) -> None:
    """Put in hand of each that hangs what it has room for, in half of the slots; and start what may be."""
    slots, room, rooms = buffer.slots // 2, buffer.room, buffer.rooms()
    for config in range(hanging):
        number = min(slots, rooms.get(config_id(config), room))
        buffer.put(deliveries(config, number, start=1000 * config))
        slots -= number
    take_all(buffer)


def test_something_is_free_in_hand_however_many_hang() -> None:
    """Claim by claim, each of half of what is free, those that finish nothing get less, and who is quick gets all."""
    buffer = Buffer(concurrency=100, per_config=20)
    answer(buffer, 9999)
    for _ in range(50):
        claim_half(buffer, 1000)
        assert not buffer.is_hungry
    assert buffer.slots > 100
    assert buffer.rooms()[config_id(9999)] == 20


@pytest.mark.parametrize("hanging", [100, 300])
def test_who_comes_new_has_room_beside_hundreds_that_hang(hanging: int) -> None:
    """What those have in hand gets less as the buffer fills."""
    buffer = Buffer(concurrency=100, per_config=20)
    for _ in range(50):
        claim_half(buffer, hanging)
    assert buffer.slots > 100
    assert buffer.room > 3


def test_who_timed_out_and_is_sent_no_more_to_is_forgotten() -> None:
    """Deleted, switched off, or recovered by another daemon's count: else its metric would stay up for ever."""
    buffer = Buffer(concurrency=8, per_config=8)
    buffer.put(deliveries(1, 1) + deliveries(2, 1))
    take_all(buffer)
    both = {config_id(1), config_id(2)}
    for each in both:
        buffer.finished(each, timed_out=True, seconds=15.0)
    buffer.note_failing(set())  # not settled yet, and so not counted
    assert (buffer.timed_out, buffer.limited) == (2, 2)
    for _ in range(100):
        buffer.measure(0.1)
    buffer.note_failing(both)
    assert (buffer.timed_out, buffer.limited) == (2, 2)
    buffer.note_failing({config_id(2)})
    assert (buffer.timed_out, buffer.limited) == (1, 1)
