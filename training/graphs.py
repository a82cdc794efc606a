"""ONNX graphs written node by node, with onnx.helper alone: what the baselines and the ensemble are made of."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.contract import Contract

OPSET = 18


class Graph:
    """A few lines of ONNX at a time: every method adds nodes and names what comes out.

    prefix : stands before every name of this graph, so that several can become one.
    """

    def __init__(self, contract: Contract, prefix: str = "") -> None:
        self._contract = contract
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """One node with one output."""
        name = self._prefix + output
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, output: str, array: np.ndarray) -> str:
        """A weight, once a name."""
        name = self._prefix + output
        if name not in {weight.name for weight in self.weights}:
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def affine(self, source: str, weight: np.ndarray, bias: np.ndarray, output: str) -> str:
        """source (b, P) @ weight (P, Q) + bias (Q,)."""
        inputs = [
            source, self.constant(f"{output}_weight", weight.astype(np.float32)),
            self.constant(f"{output}_bias", bias.astype(np.float32)),
        ]
        return self.add("Gemm", inputs, output)

    def flat(self) -> str:
        """The window as one vector. (b, T, I) -> (b, T*I)."""
        return self.add("Flatten", ["x"], "flat", axis=1)

    def slice_time(self, start: int, stop: int, output: str, source: str = "x") -> str:
        """Rows start..stop-1 of every window."""
        limits = [self.constant(f"{output}_{end}", np.array([value])) for end, value in (("from", start), ("to", stop))]
        return self.add("Slice", [source, *limits, self.constant("time", np.array([1]))], output)

    def scored(self) -> str:
        """The scored channels of the window. (b, T, S)."""
        return self.add("Gather", ["x", self.constant("sensors", self._contract.sensors_in_inputs)], "scored", axis=2)

    def newest_scored(self) -> str:
        """The scored channels of the newest row. (b, 1, S)."""
        row = self.slice_time(self._contract.window - 1, self._contract.window, "newest_in")
        sensors = self.constant("sensors", self._contract.sensors_in_inputs)
        return self.add("Gather", [row, sensors], "newest_scored", axis=2)

    def newest_of_rebuilt(self) -> str:
        """The last row of `rebuilt` as `newest`. (b, T, S) -> (b, 1, S)."""
        return self.slice_time(self._contract.window - 1, self._contract.window, "newest", source="rebuilt")

    def finish(self, latent: int) -> bytes:
        """A checked ONNX file with a free batch axis."""
        window, inputs, sensors = self._contract.window, len(self._contract.inputs), len(self._contract.sensors)
        shapes = {"newest": [1, sensors], "latent": [latent], "rebuilt": [window, sensors]}
        graph = helper.make_graph(
            self.nodes, "narrows",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", window, inputs])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", *shape]) for name, shape in shapes.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content
