"""Features by module path: hooks live as long as a fit needs them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kdengine
from kdengine.api.errors import LossError
from kdengine.engine.features import Capture
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import KD, Hint
from tests.engine.common import engine, items, mlp


def capture_of(module, *paths):
    return Capture(module, {"hint": paths}, "student")


def captured(module, *paths, inputs=None):
    """The features of one forward, and the forward's output."""
    capture = capture_of(module, *paths)
    capture.attach()
    capture.start()
    output = module(torch.randn(2, 12) if inputs is None else inputs)
    features = capture.take()
    capture.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    return features, output


def test_a_capture_hands_over_what_arrived_once():
    module = mlp()
    capture = capture_of(module, "1", "1")
    capture.attach()
    capture.start()
    output = module(torch.randn(2, 12))
    assert output.shape == (2, 5)
    assert capture.take()["1"].shape == (2, 8)
    with pytest.raises(LossError, match=r"^losses\.hint\.student: no feature arrived from '1'"):
        capture.take()
    capture.remove()
    assert not module[1]._forward_hooks


def test_wildcards_and_inputs_are_the_tensors_that_pass_through():
    module = nn.Sequential(mlp(), nn.Linear(5, 5), nn.Linear(5, 3))
    inputs = torch.randn(2, 12)
    features, output = captured(module, "?", "0.1:input", "", inputs=inputs)
    assert list(features) == ["", "0", "0.1:input", "1", "2"], "in the order of the modules, whatever the order asked"
    assert torch.equal(features["0.1:input"], module[0][0](inputs))
    assert torch.equal(features["0"], module[0](inputs))
    assert features[""] is not None
    assert torch.equal(features["2"], output)
    assert all(feature.requires_grad for feature in features.values())


def test_the_order_of_pairs_does_not_depend_on_what_other_losses_ask():
    module = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    capture = Capture(module, {"first": ["2", "1"], "second": ["*"]}, "student")
    assert capture.paths == ("0", "1", "2")


class Nested(nn.Module):
    """Takes and gives nested things."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, scale, /, *, several=(), more=None):
        return {"loss": torch.tensor(0.0), "pair": [(self.inner(more["x"]) * scale,), several]}


def test_the_first_tensor_of_nested_outputs_and_of_keyword_inputs_is_the_feature():
    module = nn.ModuleDict({"nested": Nested()})
    module.forward = lambda x: module["nested"](2.0, several=(x + 1,), more={"x": x})["pair"][0][0]
    inputs = torch.randn(2, 3)
    features, output = captured(module, "nested", "nested:input", inputs=inputs)
    assert torch.equal(features["nested"], output)
    assert torch.equal(features["nested:input"], inputs + 1)


def test_a_module_without_a_tensor_is_named_with_what_it_gave():
    module = nn.Sequential(nn.Identity(), nn.Identity())
    module[0].forward = lambda x: {"a": 3}
    with pytest.raises(LossError, match=r"expected a tensor from '0', got a dict with keys \['a'\]"):
        captured(module, "0")


def test_a_module_that_runs_twice_gives_what_it_gave_last():
    shared = nn.Linear(12, 12)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    features, output = captured(module, "0", "2", "0:input")
    assert torch.equal(features["0"], output)
    assert torch.equal(features["2"], output), "both names of one module"
    assert (features["0:input"] >= 0).all()


def test_a_feature_that_is_changed_in_place_is_captured_as_it_was():
    module = nn.Sequential(nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3))
    inputs = torch.randn(4, 12)
    expected = nn.functional.linear(inputs, module[0].weight, module[0].bias)
    capture = capture_of(module, "0", "1:input", "1", "3")
    capture.attach()
    for _ in range(3):
        for training in (False, True):
            module.train(training)
            capture.start()
            module(inputs)
            features = capture.take()
            assert torch.equal(features["0"], expected)
            assert torch.equal(features["1:input"], expected)
            assert torch.equal(features["1"], expected.relu()), "the dropout behind it works in place when training"
    capture.remove()
    features["0"].sum().backward()
    assert torch.equal(module[0].bias.grad, torch.full((8,), 4.0))


def test_a_feature_that_begins_to_be_changed_in_place_is_captured_as_it_was():
    module = nn.Sequential(nn.Linear(12, 8), nn.ReLU())
    inputs = torch.randn(2, 12)
    expected = module[0](inputs)
    for module[1].inplace in (False, True):
        features, _ = captured(module, "0", inputs=inputs)
        assert torch.equal(features["0"], expected)


class Residual(nn.Module):
    """A block whose output has two readers beside the loss: its convolution and its shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.inner(x).relu())


def graph_of(tensor):
    """The names of the nodes behind a tensor, in the order in which autograd would be walked."""
    names, waiting = [], [tensor.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None:
            names.append(node.name())
            waiting += [parent for parent, _ in node.next_functions]
    return names


def test_the_graph_of_a_feature_does_not_depend_on_the_forwards_before():
    module = Residual()
    capture = capture_of(module, "stem", "inner:input")
    capture.attach()
    graphs = []
    for _ in range(3):
        capture.start()
        output = module(torch.randn(2, 12))
        features = capture.take()
        graphs.append(graph_of(output.sum() + sum(feature.sum() for feature in features.values())))
    assert graphs[0] == graphs[1] == graphs[2]


@pytest.mark.parametrize("how", ["reentrant checkpoint", "no_grad"])
def test_a_feature_without_a_graph_though_gradients_are_on_is_refused(how):
    student = mlp()
    block = nn.Sequential(*student[:2])

    def run(x):
        if how == "no_grad":
            with torch.no_grad():
                x = block(x)
        else:
            x = checkpoint(block, x, use_reentrant=True)
        return student[3](x)

    student.forward = run
    trained = engine(student, losses={"hint": Hint("1", "1"), "kd": KD()}, weights={})
    data = [(items()[:8][0].requires_grad_(), items()[:8][1])]
    with pytest.raises(
        LossError, match=r"^losses\.hint\.student: .*'1' was computed with gradients .*use_reentrant=False"
    ):
        trained.fit(data, epochs=1)
    with pytest.raises(LossError, match="use_reentrant=False"):
        trained.objective(data[0])
    with torch.no_grad():  # nothing is to be differentiated
        assert trained.objective(data[0]) > 0


def test_what_is_computed_again_in_the_backward_pass_is_not_captured():
    module = nn.Sequential(mlp(), nn.Linear(5, 3))
    block = module[0].forward
    module[0].forward = lambda x: checkpoint(block, x, use_reentrant=False)
    capture = capture_of(module, "0.1")
    capture.attach()
    capture.start()
    module(torch.randn(2, 12))
    capture.take()["0.1"].sum().backward()
    assert module[0][0].weight.grad.abs().sum() > 0
    assert not capture._seen


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("layr1", "there is no module 'layr1'; did you mean 'layer1' or 'layer2'?"),
        ("layer9", "did you mean"),
        ("layer?.conv", r"there is no module 'layer\?.conv'"),
        ("encoder.block.0", "the modules at the top are 'layer1', 'layer2', 'head'"),
        ("layr1:input", "there is no module 'layr1'; did you mean 'layer1'"),
    ],
)
def test_an_unknown_path_names_the_loss_its_key_and_the_nearest(path, said):
    module = nn.ModuleDict({"layer1": nn.Linear(1, 1), "layer2": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    with pytest.raises(LossError, match=rf"^losses\.mine\.teacher: .*{said}") as caught:
        Capture(module, {"kd": [], "mine": ["head", path]}, "teacher")
    assert caught.value.place == ("losses", "mine", "teacher")


def scripted():
    return torch.jit.script(mlp())


def traced():
    return torch.jit.trace(mlp(), torch.randn(2, 12))


def exported():
    return torch.export.export(mlp(), (torch.randn(2, 12),)).module()


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.jit")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (scripted, r"'1' is scripted \(torch.jit, from '' on\), where hooks do not fire; give the model as it was"),
        (traced, r"'1' is scripted"),
        (exported, r"'0' is inside a traced graph \(torch.export.*torch\.export\.unflatten"),
        (lambda: nn.Sequential(mlp(), scripted()), r"'1' is scripted \(torch.jit, from '1' on\)"),
    ],
)
def test_a_path_inside_a_scripted_or_exported_module_names_the_loss_and_what_to_do(make, said):
    with pytest.raises(kdengine.ConfigurationError, match=rf"^losses\.mine\.teacher: the module {said}"):
        engine(teacher=make(), losses={"mine": Hint("1", said[1])}, weights={}).fit(
            kdengine.loader(items(), 8), epochs=1
        )


def test_a_module_that_an_export_has_dissolved_is_said_to_be_gone():
    with pytest.raises(LossError, match=r"there is no module '1'; .*traced graph inside, in which modules may be gone"):
        capture_of(exported(), "1")


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.jit")
def test_a_module_beside_a_scripted_one_and_an_unflattened_or_traced_graph_give_their_features():
    model = nn.Sequential(torch.jit.script(mlp()), nn.ReLU())
    features, output = captured(model, "1", "1:input")
    assert torch.equal(features["1"], output)
    program = torch.export.export(mlp(), (torch.randn(2, 12),))
    for module in (torch.export.unflatten(program), torch.fx.symbolic_trace(mlp())):
        features, output = captured(module, "3")
        assert torch.equal(features["3"], output)


def test_setup_sees_real_shapes_and_leaves_random_state_and_statistics_as_found():
    class NeedsShapes(kdengine.Loss):
        needs = kdengine.Needs(logits=False, student_features=("0",), teacher_features=("0",))

        def setup(self, example):
            torch.rand(7)
            self.shapes = (example.student.features["0"].shape[1:], example.teacher.features["0"].shape[1:])

        def per_item(self, batch):
            return batch.student.features["0"].square()

    student = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    loss = NeedsShapes()
    trained = engine(student, losses={"shapes": loss}, weights={})
    before = torch.get_rng_state(), student[1].running_mean.clone()
    trained._models(lambda: kdengine.Batch(items()[:8][0]))
    assert loss.shapes == ((8,), (32,))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], student[1].running_mean)


class Squares(kdengine.Loss):
    """The student's feature alone; needs no setup."""

    def __init__(self, path):
        super().__init__()
        self.needs = kdengine.Needs(teacher=False, logits=False, student_features=(path,))

    def per_item(self, batch):
        return batch.student.features[self.needs.student_features[0]].square()


def test_a_feature_that_does_not_arrive_is_said_before_training_though_no_loss_waits_for_shapes():
    student = mlp()
    student.add_module("unused", nn.Linear(3, 3))
    student.forward = lambda inputs: student[3](student[1](student[0](inputs)))
    with pytest.raises(LossError, match=r"^losses\.squares\.student: no feature arrived from 'unused'"):
        engine(student, losses={"squares": Squares("unused")}, weights={}).assemble(kdengine_feed())


def kdengine_feed():
    from kdengine.engine.batching import to_batch
    from kdengine.engine.feed import Feed

    return Feed(kdengine.loader(items(), 8), 1, to_batch)


def test_evaluations_are_not_captured_and_leave_nothing_to_training():
    """Neither metrics over a loader nor someone's own function, with hooks of the fit in place."""
    student, seen = mlp(), []

    class Watched(Capture):
        def _keep(self, path, given):
            seen.append((self.module.training, self._wanted))
            super()._keep(path, given)

    trained = engine(student, losses={"hint": Hint("1", "1"), "kd": KD()}, weights={}, metrics={"top1": "top1"})
    fit = trained.assemble(kdengine_feed(), kdengine.loader(items(), 16, shuffle=False), epochs=2)
    fit.models.student_features = Watched(student, {"hint": ["1"]}, "student")
    from kdengine.engine import loop
    from kdengine.engine.assembly import attached

    with attached(fit.models):
        loop.run(fit)
        assert not fit.models.student_features._seen
        assert student(items()[:4][0]).shape == (4, 5)
        assert not fit.models.student_features._seen
    assert seen.count((True, True)) == 2 * 4
    assert (True, False) in seen, "the forward at the end, which nobody asked for"
    assert (False, False) in seen, "the evaluations"
    assert (False, True) not in seen


def test_a_step_inside_a_fit_leaves_the_hooks_of_the_fit():
    class Further:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            if context.step == 1:
                trained.train_step([items()[:8]])

    student = mlp()
    trained = engine(student, losses={"hint": Hint("1", "1")}, weights={}, plugins=[Further()])
    assert trained.fit(kdengine.loader(items(), 8), epochs=1).steps >= 4
    assert not student[1]._forward_hooks


def test_a_teacher_in_another_precision_gives_its_features():
    teacher = LiveTeacher(mlp(32), dtype=torch.float64)
    losses = {"hint": Hint("*", "*")}
    result = engine(mlp(), teacher, losses=losses, weights={}).fit(kdengine.loader(items(), 8), epochs=1)
    assert result.steps == 4
