"""Acknowledgements: one message for any number of reports and choices."""

from __future__ import annotations

import asyncio

import pytest

from latencyprobe.domain.summary import PodChoice
from latencyprobe.protocol.v1 import node_agent_pb2 as pb
from latencyprobe_operator.agents.acknowledgements import Acknowledgements


def wanted(message: pb.WatchReportsRequest) -> dict[str, tuple[int, int]]:
    """(most, min_score) of each probe in a message."""
    return {each.probe_id: (each.choice.most, each.choice.min_score) for each in message.wanted}


class Stream:
    """The messages of a new stream, taken as a session takes them."""

    def __init__(self, acknowledgements: Acknowledgements) -> None:
        self._acknowledgements = acknowledgements
        self._due = asyncio.Event()
        acknowledgements.open_stream(self._due.set)

    async def __anext__(self) -> pb.WatchReportsRequest:
        while (message := self._acknowledgements.take()) is None:
            self._due.clear()
            await self._due.wait()
        return message


async def test_the_first_message_opens_the_stream_with_nothing() -> None:
    acknowledgements = Acknowledgements()
    acknowledgements.want("p", PodChoice(1))

    opening = await anext(Stream(acknowledgements))
    assert opening == pb.WatchReportsRequest()


async def test_a_slow_agent_gets_the_newest_of_all_in_one_message() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    for sequence in range(1, 1000):
        acknowledgements.acknowledge(sequence, ["p", "q"])
        acknowledgements.want("p", PodChoice(sequence % 7, sequence))
        acknowledgements.want("q", PodChoice(3))

    message = await anext(messages)
    assert message.acknowledged == 999
    assert wanted(message) == {"p": (999 % 7, 999), "q": (3, 0)}
    acknowledgements.acknowledge(1000)
    message = await anext(messages)
    assert (message.acknowledged, wanted(message)) == (1000, {})


async def test_a_choice_goes_out_with_the_acknowledgement_of_a_report_on_its_probe() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    acknowledgements.want("p", PodChoice(2))
    waiting = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    assert not waiting.done()
    acknowledgements.acknowledge(1, ["another"])

    assert wanted(await waiting) == {}
    acknowledgements.acknowledge(2, ["p"])
    assert wanted(await anext(messages)) == {"p": (2, 0)}
    acknowledgements.want("p", PodChoice(4))
    waiting = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    assert not waiting.done()
    acknowledgements.acknowledge(3, ["p"])
    message = await waiting
    assert (message.acknowledged, wanted(message)) == (3, {"p": (4, 0)})


async def test_a_choice_that_a_status_waits_for_goes_out_at_once() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    acknowledgements.want("p", PodChoice(2), at_once=True)
    waiting = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    assert not waiting.done(), "the agent does not know the probe yet"
    acknowledgements.acknowledge(1, ["p"])
    await waiting
    acknowledgements.want("p", PodChoice(4))
    acknowledgements.want("p", PodChoice(4), at_once=True)

    message = await anext(messages)
    assert (message.acknowledged, wanted(message)) == (1, {"p": (4, 0)})


async def test_a_new_stream_gets_the_choices_again_and_those_of_gone_probes_never() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    acknowledgements.acknowledge(7, ["p", "gone"])
    acknowledgements.want("p", PodChoice(2))
    acknowledgements.want("gone", PodChoice(2), at_once=True)
    await anext(messages)
    acknowledgements.keep(["p"])

    again = Stream(acknowledgements)
    await anext(again)
    acknowledgements.acknowledge(1, ["p"])
    message = await anext(again)
    assert (message.acknowledged, wanted(message)) == (1, {"p": (2, 0)})


async def test_an_equal_choice_is_not_sent_again() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    acknowledgements.acknowledge(1, ["p"])
    acknowledgements.want("p", PodChoice(2), at_once=True)
    await anext(messages)
    acknowledgements.want("p", PodChoice(2), at_once=True)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(messages)


async def test_five_of_six_acknowledgements_that_can_wait_go_with_the_next_message() -> None:
    acknowledgements = Acknowledgements()
    for _ in range(2):
        stream = Stream(acknowledgements)
        await anext(stream)
        sent = []
        waiting = asyncio.ensure_future(anext(stream))
        for sequence in range(1, 14):
            acknowledgements.acknowledge(sequence, ["p"], can_wait=True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if waiting.done():
                sent.append(waiting.result().acknowledged)
                waiting = asyncio.ensure_future(anext(stream))
        waiting.cancel()
        await asyncio.wait([waiting])
        assert sent == [6, 12]


async def test_an_acknowledgement_with_a_choice_or_of_figures_does_not_wait() -> None:
    acknowledgements = Acknowledgements()
    messages = Stream(acknowledgements)
    await anext(messages)
    acknowledgements.acknowledge(1, ["p"], can_wait=True)
    acknowledgements.want("p", PodChoice(2))
    acknowledgements.acknowledge(2, ["p"], can_wait=True)
    message = await anext(messages)
    assert (message.acknowledged, wanted(message)) == (2, {"p": (2, 0)})

    acknowledgements.acknowledge(3, ["p"])
    assert (await anext(messages)).acknowledged == 3
    acknowledgements.acknowledge(4, ["p"], can_wait=True)
    waiting = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    assert not waiting.done()
    acknowledgements.want("p", PodChoice(3), at_once=True)
    message = await waiting
    assert (message.acknowledged, wanted(message)) == (4, {"p": (3, 0)})


async def test_nothing_is_due_in_a_stream_that_was_closed() -> None:
    acknowledgements, asked = Acknowledgements(), []
    acknowledgements.open_stream(lambda: asked.append("opening"))
    acknowledgements.acknowledge(1, ["p"])
    before = list(asked)
    acknowledgements.close_stream()
    acknowledgements.want("p", PodChoice(2), at_once=True)

    assert asked == before
