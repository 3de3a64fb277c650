"""A model of several heads: each loss and metric reads its own logits and labels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdengine
from kdengine.losses import CE, KD, MSE, Hard
from kdengine.teachers.ensemble import Ensemble
from kdengine.teachers.peer import Peer
from tests.engine.common import INPUTS, engine, flat, items, mlp

X, SEX = items(16).tensors
AGE = torch.randint(3, (16,), generator=torch.Generator().manual_seed(1))
BATCH = X, {"age": AGE, "sex": SEX}


class People(nn.Module):
    """Two heads on one body."""

    def __init__(self, width=8, ages=3):
        super().__init__()
        torch.manual_seed(width)
        self.body = nn.Linear(INPUTS, width)
        self.age, self.sex = nn.Linear(width, ages), nn.Linear(width, 5)

    def forward(self, inputs):
        hidden = self.body(inputs).relu()
        return {"age": self.age(hidden), "sex": self.sex(hidden)}


def head(name):
    return lambda output: output[name]


def people(student=None, teacher=None, losses=None, **options):
    losses = losses or {"age": CE(), "sex": CE(), "soft": KD(1.0)}
    names = {"age": "age", "sex": "sex", "soft": "age", "right": "sex", "same": "age", "peers": "age"}
    known = [*losses, *options.get("metrics", {})]
    defaults = {
        "weights": {},
        "output": {label: head(names[label]) for label in known},
        "labels": {label: head(names[label]) for label in known},
    }
    return engine(student or People(), teacher or People(16), losses=losses, **{**defaults, **options})


def divergence(student, teacher):
    return (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1).mean()


def test_each_loss_reads_its_own_head_and_labels():
    student, teacher = People(), People(16)
    ours, theirs = student(X), teacher(X)
    expected = {
        "age": F.cross_entropy(ours["age"], AGE).item(),
        "sex": F.cross_entropy(ours["sex"], SEX).item(),
        "soft": divergence(ours["age"], theirs["age"]).item(),
    }
    total = people(student, teacher).objective(BATCH).item()
    assert total == pytest.approx(sum(expected.values()), rel=1e-5)
    record = people(student, teacher).fit([BATCH], epochs=1).history[0]
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_heads_learn(accumulate):
    student = People()
    before = {name: flat(module).clone() for name, module in student.named_children()}
    window = [(X[:8], {"age": AGE[:8], "sex": SEX[:8]}), (X[8:], {"age": AGE[8:], "sex": SEX[8:]})]
    assert people(student, accumulate=accumulate, gradient_shares=True).fit(window, epochs=2).steps == 4 // accumulate
    assert all(not torch.equal(flat(module), before[name]) for name, module in student.named_children())


def test_unlabelled_items_of_one_head_count_for_the_other():
    student = People()
    age = AGE.clone()
    age[4:] = -100
    expected = F.cross_entropy(student(X)["age"][:4], AGE[:4]) + F.cross_entropy(student(X)["sex"], SEX)
    losses = {"age": CE(), "sex": CE()}
    batch = kdengine.Batch(X, {"age": age, "sex": SEX})
    assert people(student, losses=losses).objective(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_metrics_read_their_own_heads():
    student, teacher = People(), People(16)
    measured = people(student, teacher, metrics={"right": "top1", "same": "agreement"}).evaluate([BATCH])
    right = (student(X)["sex"].argmax(-1) == SEX).float().mean().item()
    same = (student(X)["age"].argmax(-1) == teacher(X)["age"].argmax(-1)).float().mean().item()
    assert measured == {"right": pytest.approx(right), "same": pytest.approx(same)}


def test_shares_of_the_gradient_and_an_evaluation_of_a_fit_see_the_heads():
    fitted = people(metrics={"right": "top1"}, gradient_shares=True)
    result = fitted.fit([BATCH], [BATCH], epochs=1)
    assert set(result.metrics) == {"right"}


def test_classes_of_a_head_are_aligned():
    student, teacher = People(), People(16, ages=7)
    aligned = people(student, teacher, {"soft": KD(1.0)}, classes=[6, 0, 2]).objective(BATCH).item()
    expected = divergence(student(X)["age"], teacher(X)["age"][:, [6, 0, 2]]).item()
    assert aligned == pytest.approx(expected, rel=1e-5)
    with pytest.raises(kdengine.LossError, match=r"^losses\.soft: .*3 classes and the teacher 7"):
        people(student, teacher, {"soft": KD(1.0)}).objective(BATCH)


def test_losses_without_a_head_of_their_own_find_the_logits_as_usual():
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = mlp(8), mlp(9)

        def forward(self, inputs):
            return {"logits": self.first(inputs), "distilled": self.second(inputs)}

    student, teacher = Distilled(), mlp(32)
    read = {"hard": lambda output: output["distilled"] if isinstance(output, dict) else output}
    total = engine(student, teacher, losses={"ce": CE(), "hard": Hard()}, weights={}, output=read).objective((X, SEX))
    decided = teacher(X).argmax(-1)
    expected = F.cross_entropy(student.first(X), SEX) + F.cross_entropy(student.second(X), decided)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_students_that_teach_each_other_by_heads():
    peer = People(16)
    before = flat(peer.age).clone()
    learning = people(People(), Peer(peer), {"age": CE(), "peers": KD(1.0)})
    record = learning.fit([BATCH], epochs=1).history[0]
    assert record["peer_age"] == pytest.approx(F.cross_entropy(People(16)(X)["age"], AGE).item(), rel=1e-5)
    assert not torch.equal(flat(peer.age), before)


def test_regression_beside_classification():
    student = People(ages=1)
    years = torch.rand(16)
    losses = {"age": MSE(target="labels"), "sex": CE()}
    total = people(student, losses=losses).objective((X, {"age": years, "sex": SEX})).item()
    expected = (student(X)["age"].squeeze(-1) - years).square().mean() + F.cross_entropy(student(X)["sex"], SEX)
    assert total == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("argument", ["output", "labels"])
def test_keys_that_name_nothing_and_values_that_are_no_functions_are_refused(argument):
    with pytest.raises(kdengine.ConfigurationError, match=rf"Engine\({argument}=.*'agee'.*did you mean 'age'"):
        people(**{argument: {"agee": head("age")}})
    with pytest.raises(kdengine.ConfigurationError, match=rf"Engine\({argument}=...\)\['age'\] must be a function"):
        people(**{argument: {"age": "age"}})
    with pytest.raises(kdengine.ConfigurationError, match=rf"Engine\({argument}=...\) must be a function, or"):
        people(**{argument: ["age"]})


def test_a_head_that_finds_nothing_says_what_it_was_given():
    with pytest.raises(kdengine.LossError, match=r"^losses\.age: Engine\(output=...\)\['age'\] raised KeyError"):
        people(losses={"age": CE()}, output={"age": head("years")}).objective(BATCH)
    with pytest.raises(kdengine.LossError, match=r"returned a dict .* expected a tensor"):
        people(losses={"age": CE()}, labels={"age": lambda labels: labels}).objective(BATCH)


def test_a_loss_that_was_not_told_its_labels_is_named():
    losses = {"age": CE(), "sex": CE()}
    for run in (lambda e: e.objective(BATCH), lambda e: e.fit([BATCH], epochs=1)):
        with pytest.raises(kdengine.LossError, match=r"^losses\.sex: .*a dict with keys \['age', 'sex'\].*\(labels="):
            run(people(losses=losses, labels={"age": head("age")}))
    measured = people(losses=losses, metrics={"right": "top1"}, labels={"age": head("age")})
    with pytest.raises(kdengine.ConfigurationError, match=r"^metrics\.right: .*Engine\(labels=\{'right'"):
        measured.evaluate([BATCH])
    with pytest.raises(kdengine.ConfigurationError, match=r"labels as a tensor, got a dict .*Engine\(labels="):
        people(losses=losses, labels=None).objective(BATCH)


def test_a_teacher_that_gives_one_head_alone_is_refused():
    with pytest.raises(kdengine.ConfigurationError, match="Ensemble, gives the logits of one head alone"):
        people(People(), Ensemble([People(16)])).objective(BATCH)
