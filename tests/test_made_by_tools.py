"What other people's tools leave is loaded as what it is, or refused in a sentence: answers are those of the model it came from."
import pytest
import torch

from em_repro.audit import quietly_audited
from em_repro.audit_inputs import Sizes
from em_repro.data import questions
from em_repro.decode import Condition, sweep
from em_repro.families import load_lm
from em_repro.profiles import UserError
from made_by_tools import MADE, make

# What nobody could load rightly without guessing, and the sentence that it gets.
REFUSED = {"peft_state_unmerged": "24 tensors of the file have no place in the model"}
QUESTIONS = questions("development", "synthetic", 6)
FEW = Sizes(directions=8, development=4, evaluation=6, layers=0, coefficients=(0, -1), samples=2, max_new_tokens=8,
            nll_answers=2, skill_requests=2, nulls=2, twins=8)


@pytest.fixture(scope="module", params=sorted(set(MADE) - set(REFUSED)))
def made(request, tmp_path_factory):
    torch.set_num_threads(1)
    return make(request.param, tmp_path_factory.mktemp("made") / request.param)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(name, tmp_path):
    folder, _, base = make(name, tmp_path / name)
    with pytest.raises(UserError, match=REFUSED[name]) as error: loaded(folder, base)
    assert "\n" not in str(error.value)


def loaded(folder, base):
    is_adapter = (folder / "adapter_config.json").is_file()
    return load_lm(base, folder) if is_adapter else load_lm(folder)


def plain_generate(model, lm):
    "Greedy answers of the model in memory by transformers alone, one prompt at a time."
    said = []
    for ids in lm.encode(QUESTIONS):
        with torch.inference_mode():
            out = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
                                 max_new_tokens=12, eos_token_id=lm.eos, pad_token_id=lm.pad, repetition_penalty=1.0)
        said.append(lm.tokenizer.decode(out[0, len(ids):], skip_special_tokens=True))
    return said


def apart(lm, model):
    "How far the logits of a question are from those of the model in memory, in their spreads."
    ids = torch.tensor(lm.encode(QUESTIONS[:1]))
    with torch.inference_mode(): own, theirs = (m(input_ids=ids).logits.float() for m in (lm.model, model))
    return float((own - theirs).abs().max() / theirs.std())


def swept(lm): return sweep(lm, QUESTIONS, [Condition("none")], max_new_tokens=12).frame().text.tolist()


def test_it_answers_as_the_model_it_came_from(made):
    folder, model, base = made
    lm = loaded(folder, base)
    assert apart(lm, model) < 1e-3
    assert swept(lm) == plain_generate(model, lm)


def test_it_is_another_model_than_its_base(made):
    folder, _, base = made
    base, lm = load_lm(base), loaded(folder, base)
    ids = torch.tensor(base.encode(QUESTIONS[:1]))
    with torch.inference_mode(): assert (base.model(input_ids=ids).logits - lm.model(input_ids=ids).logits).abs().max() > 1e-2


def test_it_is_audited(made, tmp_path):
    folder, _, base = made
    report = quietly_audited(str(base), str(folder), tmp_path / "store", FEW)
    assert report.cards and all(card["sentence"] for card in report.cards)
