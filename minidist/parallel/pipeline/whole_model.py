"""The whole model of a pipeline: read, evaluated, saved and loaded, although no rank has it.

Each stage has its own parameters, and each rank of a tensor axis a part of these. To read the whole
model, each stage broadcasts its parameters and its optimizer's state. To evaluate, samples pass
through the stages' forwards.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives import all_reduce, central
from minidist.comm.comm import Comm
from minidist.data.batches import Batch, Dataset
from minidist.engine import array as arrays
from minidist.engine.array import Array
from minidist.engine.tensor import Tensor, as_tensor
from minidist.nn.layers import Sequential
from minidist.nn.module import Parameter
from minidist.parallel.buffers import mean_buffers, with_buffers
from minidist.parallel.evaluation import as_in_evaluation, counts, mean_over_ranks
from minidist.parallel.gradient_sync import GradientSync
from minidist.parallel.mesh.mesh import Mesh
from minidist.parallel.method import Method
from minidist.parallel.pipeline.layout import Layout
from minidist.parallel.pipeline.stage_sums import OwnStage
from minidist.parallel.shares import Share
from minidist.parallel.state import (
    OptimizerShard,
    State,
    load_optimizer,
    own_buffers,
    own_names,
    save_optimizer,
    under,
)
from minidist.parallel.tensor.part import TensorPart, own_optimizer


class WholeModel(Method):
    """Base of ``Pipeline``: reads, evaluates, saves and loads the whole model."""

    model: Sequential  # of this stage, and of this rank of the tensor axis
    layout: Layout
    mesh: Mesh
    pipe: Comm
    stage: int
    replica: int
    sync: GradientSync
    own: OwnStage
    tensor: TensorPart | None

    def parameters(self) -> dict[str, np.ndarray]:
        """All parameters: every stage broadcasts its own."""
        named = self.whole.named_parameters()
        return self._from_all_stages(self._serial(self.sync.parameters()), named)

    def _serial(self, state: State) -> State:
        """This stage's arrays with the shapes of the serial model."""
        return state if self.tensor is None else self.tensor.whole(state)

    def _from_all_stages(self, mine: State, named: dict[str, Parameter]) -> State:
        """The arrays of the parameters ``named``: each stage broadcasts its own, ``mine``."""
        found: State = {}
        for stage, part in enumerate(self.layout.stage_models):
            names = [name for name in part.named_parameters() if name in named]
            flat = (
                np.concatenate([mine[name].reshape(-1) for name in names])
                if stage == self.stage and names
                else np.empty(sum(named[name].size for name in names), self.model.flat.data.dtype)
            )
            central.broadcast(self.pipe, flat, root=stage)
            start = 0
            for name in names:
                stop = start + named[name].size
                found[name] = flat[start:stop].reshape(named[name].declared).copy()
                start = stop
        return {name: found[name] for name in named}

    def buffers(self) -> dict[str, np.ndarray]:
        """Every stage's buffers, each the mean over the replicas."""
        found: dict[str, np.ndarray] = {}
        mine = self._own_buffers()
        for stage, model in enumerate(self.layout.stage_models):
            for name, buffer in model.named_buffers().items():
                empty = np.empty(buffer.declared, self.model.flat.data.dtype)
                found[name] = mine[name] if stage == self.stage else empty
                central.broadcast(self.pipe, found[name], root=stage)
        return {name: found[name] for name in self.whole.named_buffers()}

    def _own_buffers(self) -> State:
        """This stage's buffers, the mean over the replicas."""
        copies = self.own.replicas
        return own_buffers(self.model) if copies is None else mean_buffers(copies, self.model)

    @property
    def copies(self) -> int:
        return self.layout.replicas

    def evaluate(self, dataset: Dataset, chunk: int = 1000) -> tuple[float, float]:
        """(mean loss, accuracy): each replica's shard of each chunk passes through its stages."""
        if self.tensor is not None:
            self.tensor.check_targets(f"{type(self).__name__}.evaluate", dataset)
        sums = np.zeros(4)
        with as_in_evaluation(self.model), with_buffers(self.model, self._own_buffers()):
            for whole in dataset.chunks(chunk):
                shard = whole.shard(self.replica, self.layout.replicas)
                output = self._pass_through(shard)
                if output is not None:
                    counted = counts(output, self.loss, shard)
                    if self.mesh.place["tp"] == 0:  # the other ranks have the same
                        sums += counted
        return mean_over_ranks(self.comm, sums)

    def _pass_through(self, batch: Batch) -> Tensor | None:
        """The model's output on the rank that holds the last part; None on the others."""
        layout, x = self.layout, None
        flat, shapes = self.model.flat.data, layout.shapes_of(batch)
        for part, model in enumerate(layout.parts):
            if layout.stage_of(part) != self.stage:
                continue
            if part == 0:
                x = as_tensor(batch.inputs)
            elif layout.stage_of(part - 1) != self.stage:
                x = Tensor(arrays.module_of(flat).empty(shapes[part], flat.dtype))
                self.pipe.recv(x.data, layout.stage_of(part - 1))
            x = self.sync.run(model, x)
            if part + 1 == len(layout.parts):
                return x
            if layout.stage_of(part + 1) != self.stage:
                following = layout.stage_of(part + 1)
                self.pipe.send(arrays.module_of(flat).ascontiguousarray(x.data), following)
        return None

    # Saving and loading

    def optimizer_state(self, kept: State) -> State:
        """The whole optimizer state: every stage broadcasts its own."""
        assert self.sync.comm is not None
        mine = save_optimizer(self.sync.comm, self.sync.optimizer_shards())
        steps = np.array([mine.get("steps", 0)], np.int64)  # a stage may have no parameters
        all_reduce(self.pipe, steps, "max")
        found: State = {"steps": np.array(int(steps[0]))}
        for slot in self.optimizer.slots if steps[0] else ():
            prefix = f"optimizer/{slot}/"
            trained = self.whole.trained()
            whole = self._from_all_stages(self._serial(under(prefix, mine)), trained)
            found |= {prefix + name: value for name, value in whole.items()}
        return found

    def state_shares(self) -> list[Share]:
        """This stage's part; a parameter that two stages share is written by the first.

        With a tensor axis the whole state is gathered, as by default.
        """
        if self.tensor is not None:
            return Method.state_shares(self)
        earlier = self.layout.stage_models[: self.stage]
        return self.own_shares(without={n for stage in earlier for n in stage.named_parameters()})

    def optimizer_shards(self) -> list[OptimizerShard]:
        return self.sync.optimizer_shards()

    def which_replica(self) -> tuple[int, int]:
        """This pipeline's number among the replicas."""
        return self.replica, self.layout.replicas

    def load_parameters(self, by_name: State) -> None:
        if self.tensor is not None:
            by_name = self.tensor.own(by_name)
        self.sync.load_parameters({name: by_name[name] for name in own_names(self.model)})

    def load_optimizer(self, state: State) -> None:
        assert self.sync.comm is not None
        own = state if self.tensor is None else own_optimizer(self.tensor, state)
        load_optimizer(self.sync.comm, self.sync.optimizer_shards(), own)

    def own_arrays(self) -> dict[str, Array]:
        return self.sync.own_arrays()
