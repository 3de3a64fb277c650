"""A frozen teacher stays frozen, and is proved to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kdengine
from kdengine.engine.guard import state_hash
from kdengine.engine.teacher import LiveTeacher
from kdengine.losses import KD
from tests.engine.common import INPUTS, engine, items, mlp


def loader():
    return kdengine.loader(items(), 8)


def test_the_teacher_runs_in_evaluation_mode_without_gradients_and_never_changes():
    teacher = nn.Sequential(nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 5)).train()
    before = copy.deepcopy(teacher.state_dict())
    engine(teacher=teacher).fit(loader(), epochs=1)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def make_plugin(action):
    class Meddler:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_step_end(self, context):
            action(context.fit.teacher[0])

    return Meddler()


def test_a_teacher_put_into_training_mode_is_noticed_at_the_next_step():
    with pytest.raises(kdengine.ConfigurationError, match="put into training mode"):
        engine(plugins=[make_plugin(lambda teacher: teacher[2].train())]).fit(loader(), epochs=1)


def test_a_single_changed_bit_is_noticed_at_the_end():
    def change(teacher):
        with torch.no_grad():
            teacher[0].weight[0, 0] = torch.nextafter(teacher[0].weight[0, 0], torch.tensor(9.0))

    with pytest.raises(kdengine.ConfigurationError, match="changed during the fit"):
        engine(plugins=[make_plugin(change)]).fit(loader(), epochs=1)


def test_a_teacher_that_shares_parameters_with_the_student_is_refused():
    student = mlp()
    with pytest.raises(kdengine.ConfigurationError, match="share 4 parameter tensors"):
        engine(student, student).fit(loader(), epochs=1)


def test_the_state_hash_depends_on_order_and_on_every_element():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    assert state_hash([first, second]) != state_hash([second, first])
    swapped = copy.deepcopy(first)
    swapped.weight.data[0] = first.weight.data[1]
    swapped.weight.data[1] = first.weight.data[0]
    assert state_hash([first]) != state_hash([swapped])
    assert state_hash([first]) == state_hash([copy.deepcopy(first)])


def test_a_live_teacher_may_have_its_own_dtype_and_input_transform():
    teacher = mlp(32)
    reference = copy.deepcopy(teacher).double()
    source = LiveTeacher(teacher, dtype=torch.float64, transform=lambda inputs: inputs * 2)
    seen = []

    class Watch:
        kdengine_hook_version = 1

        @kdengine.hookimpl
        def kdengine_on_teacher_output(self, context):
            seen.append((context.batch.inputs, context.output.logits))

    engine(teacher=source, plugins=[Watch()]).fit(loader(), epochs=1)
    inputs, logits = seen[0]
    assert torch.allclose(logits, reference(inputs.double() * 2))


def test_an_evolving_source_is_exempt_and_joins_the_checkpoint(tmp_path):
    class SelfTeacher(kdengine.TeacherSource):
        evolving = True

        def __init__(self, module):
            self.module = module
            self.updates = 0

        def forward(self, batch):
            with torch.no_grad():
                return self.module(batch.inputs)

        def update(self, student):
            self.updates += 1
            self.module.load_state_dict(student.state_dict())

        def state_dict(self):
            return {"module": dict(self.module.state_dict()), "updates": self.updates}

        def load_state_dict(self, state):
            self.module.load_state_dict(state["module"])
            self.updates = state["updates"]

    source = SelfTeacher(mlp())
    engine(teacher=source, losses={"kd": KD()}, weights={}, out=tmp_path / "run").fit(loader(), epochs=2)
    fresh = SelfTeacher(mlp())
    engine(teacher=fresh, losses={"kd": KD()}, weights={}, out=tmp_path / "run").fit(loader(), epochs=3, resume=True)
    assert (source.updates, fresh.updates) == (8, 12)


def test_a_loss_that_trains_a_frozen_teacher_is_refused():
    class Mutual(KD):
        def __init__(self):
            super().__init__()
            self.needs = kdengine.Needs(teacher_gradients=True)

    with pytest.raises(kdengine.ConfigurationError, match="evolving = True"):
        engine(losses={"mutual": Mutual()}, weights={}).fit(loader(), epochs=1)


def test_nothing_runs_the_teacher_when_no_loss_asks_for_it():
    class Loud(nn.Module):
        def forward(self, inputs):
            raise AssertionError("the teacher ran")

    from kdengine.losses import CE

    assert engine(teacher=Loud(), losses={"ce": CE()}, weights={}).fit(loader(), epochs=1).steps == 4


@pytest.mark.filterwarnings("ignore::FutureWarning:torch.jit")
def test_a_scripted_teacher_is_frozen_and_an_exported_one_says_why_it_cannot_be():
    teacher = torch.jit.script(mlp(32))
    assert engine(mlp(), teacher).fit(kdengine.loader(items(), 8), epochs=1).steps == 4
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    program = torch.export.export(mlp(32), (items()[:8][0],), dynamic_shapes=((torch.export.Dim("batch"), None),))
    with pytest.raises(kdengine.ConfigurationError, match=r"GraphModule.* evaluation mode .*torch\.export\.unflatten"):
        engine(mlp(), program.module()).fit(kdengine.loader(items(), 8), epochs=1)
    assert engine(mlp(), torch.export.unflatten(program)).fit(kdengine.loader(items(), 8), epochs=1).steps == 4
