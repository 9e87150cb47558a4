"""Speeds of steps, by a clock that is set by hand."""

from affectgpt_jax.training.flops import Work
from affectgpt_jax.training.telemetry import Mark, Pace, Span

WORK = Work(2.0, 100.0, 40.0, 5000.0)
STEP, WAIT, PAUSE = 4.0, 1.0, 50.0


class Clock:
    """Says `now`."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def take_steps(pace: Pace, clock: Clock, pauses: set[int], *, host: bool, every: int = 1) -> dict[int, Span]:
    """Spans of eight steps, taken as the loop takes them: by the host itself, or by a device beside it."""
    found: dict[int, Span] = {}
    pending: tuple[int, Mark | None] | None = None
    device = 0.0  # when it has done what it was asked

    def settle(step: int, ended: Mark | None) -> None:
        clock.now = max(clock.now, done[step])
        if step % every == 0:
            found[step] = pace.span(ended)

    done: dict[int, float] = {}
    for step in range(1, 9):
        asked = pace.mark()
        clock.now += WAIT
        pace.wait(asked)
        device = max(device, clock.now) + STEP
        done[step] = device
        if host:
            clock.now = device
        ended = pace.mark() if host else None
        if pending is not None:
            settle(*pending)
        pace.add(WORK)
        pending = step, ended
        if step in pauses:
            settle(*pending)
            pending = None
            before = pace.mark()
            clock.now += PAUSE
            pace.pause(before)
    if pending is not None:
        settle(*pending)
    return found


def test_a_host_that_is_the_device_ends_a_step_at_once() -> None:
    """Each step has its own time, one before a pause and one after it too."""
    clock = Clock()
    spans = take_steps(Pace(clock), clock, {3, 6}, host=True)
    assert spans == dict.fromkeys(range(1, 9), Span(WORK, STEP + WAIT, WAIT))


def test_several_steps_between_logged_ones() -> None:
    clock = Clock()
    spans = take_steps(Pace(clock), clock, {2, 5}, host=True, every=4)
    assert spans == dict.fromkeys((4, 8), Span(Work(8.0, 400.0, 160.0, 20000.0), 4 * (STEP + WAIT), 4 * WAIT))


def test_a_device_beside_its_host_never_waits_for_it() -> None:
    """From the second step on a step takes the device's time, and what waits for data is hidden behind it."""
    clock = Clock()
    spans = take_steps(Pace(clock), clock, {4}, host=False)
    assert [spans[step].seconds for step in (2, 3, 4)] == [STEP] * 3
    assert [spans[step].seconds for step in (6, 7, 8)] == [STEP] * 3
    assert spans[1].seconds == spans[5].seconds == STEP + WAIT
    assert sum(span.seconds for span in spans.values()) == 8 * STEP + 2 * WAIT
    assert sum(span.waited for span in spans.values()) == 8 * WAIT
