"""The gate: alone what must be alone, together what may be together, nobody left waiting."""

import anyio
import numpy as np
import pytest

from actors import hnsw
from actors.index.lanes import EfGate


class Watch:
    """Who is inside. Fails at once when a rule is broken."""

    def __init__(self, gate):
        self.gate, self.inside, self.order, self.together = gate, [], [], 0

    async def visit(self, who, lane, hold=1):
        async with self.gate.write() if lane == "w" else self.gate.read(lane):
            self.inside.append(lane)
            self.order.append(who)
            self.together = max(self.together, len(self.inside))
            assert len(set(self.inside)) == 1
            assert lane != "w" or len(self.inside) == 1
            for _ in range(hold):
                await anyio.lowlevel.checkpoint()
            assert len(set(self.inside)) == 1
            self.inside.remove(lane)


@pytest.mark.parametrize("seed", range(20))
async def test_any_mix_keeps_the_rules_and_everyone_gets_in(seed):
    rng = np.random.default_rng(seed)
    watch = Watch(EfGate())
    lanes = [int(ef) for ef in rng.choice([10, 50, 100], 60)]
    lanes = ["w" if draw < 0.15 else lane for draw, lane in zip(rng.random(60), lanes, strict=True)]

    async def later(who, lane):
        for _ in range(int(rng.integers(0, 40))):
            await anyio.lowlevel.checkpoint()
        await watch.visit(who, lane, int(rng.integers(0, 5)))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for who, lane in enumerate(lanes):
                group.start_soon(later, who, lane)
    assert sorted(watch.order) == list(range(60))
    assert watch.together > 1
    assert watch.gate.free_for(7)


async def test_a_steady_stream_of_one_ef_keeps_nobody_out():
    watch = Watch(EfGate())
    stop = False

    async def stream():
        while not stop:
            await watch.visit("busy", 50, 3)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(stream)
            await anyio.lowlevel.checkpoint()
            await watch.visit("other ef", 60)
            await watch.visit("writer", "w")
            stop = True


async def test_searches_of_the_first_in_line_go_in_together_but_not_past_a_writer():
    watch = Watch(EfGate())
    async with anyio.create_task_group() as group:
        for who, lane in enumerate(["w", 10, 20, 10, "w", 10]):
            group.start_soon(watch.visit, who, lane, 3)
    assert watch.order == [0, 1, 3, 2, 4, 5]


async def test_who_gives_up_while_waiting_leaves_no_trace():
    gate = EfGate()
    async with anyio.create_task_group() as group, gate.write():
        with anyio.move_on_after(0.01) as scope:
            async with gate.read(10):
                pytest.fail("got in beside a writer")
        assert scope.cancelled_caught
        assert not gate.free_for(10)
        group.start_soon(Watch(gate).visit, 1, 20)
        await anyio.lowlevel.checkpoint()
    assert gate.free_for(10)


async def test_who_is_let_in_and_cancelled_at_once_leaves_again():
    gate = EfGate()
    scope = anyio.CancelScope()

    async def visitor():
        with scope:
            async with gate.read(10):
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        async with gate.write():
            group.start_soon(visitor)
            await anyio.lowlevel.checkpoint()
        scope.cancel()  # its turn has come, but it has not run yet
    assert gate.free_for(99)


async def test_concurrent_searches_at_different_ef_give_what_each_gives_alone():
    """hnswlib's ef belongs to the index: without the gate, these answers mix."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 48), dtype=np.float32)
    build = hnsw.build(vectors, np.arange(4000), "l2", hnsw.GraphConfig(4, 20))
    graph = None
    while graph is None:
        try:
            next(build)
        except StopIteration as stop:
            graph = stop.value
    queries = rng.standard_normal((240, 48), dtype=np.float32)
    efs = rng.choice([10, 20, 40, 80], 240).tolist()
    alone = [hnsw.knn(graph, queries[i : i + 1], 10, efs[i])[0].tolist() for i in range(240)]
    other = [hnsw.knn(graph, queries[i : i + 1], 10, 90 - efs[i])[0].tolist() for i in range(240)]
    assert sum(a != b for a, b in zip(alone, other, strict=True)) > 100  # ef does matter here
    gate, answers = EfGate(), [None] * 240

    async def ask(i):
        async with gate.read(efs[i]):
            graph.set_ef(efs[i])
            await anyio.lowlevel.checkpoint()  # others run between setting ef and searching
            found = await anyio.to_thread.run_sync(hnsw.knn, graph, queries[i : i + 1], 10, efs[i])
            answers[i] = found[0].tolist()

    async with anyio.create_task_group() as group:
        for i in range(240):
            group.start_soon(ask, i)
    assert answers == alone
