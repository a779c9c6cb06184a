"""Files of knowledge editing: published rows are read, what is written is read back, what does not fit is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfu_lib.data import edits, gazetteer
from zfu_lib.data.edits import Case, Question

# One row of each form, with the fields that the published files have (the facts are made up).
ZSRE = {
    "subject": "Nova Hall",
    "src": "Which river is next to Nova Hall?",
    "pred": "Thames",
    "rephrase": "What river does Nova Hall lie by?",
    "alt": "Severn",
    "answers": ["Thames"],
    "loc": "nq question: who wrote the song",
    "loc_ans": "Ada Price",
    "cond": "Thames >> Severn || Which river is next to Nova Hall?",
    "portability": {
        "Recalled Relation": "(Severn, mouth)",
        "New Question": "Where does it end?",
        "New Answer": "the sea",
    },
}
COUNTERFACT = {
    "case_id": 3,
    "prompt": "The mother tongue of Ada Price is",
    "target_new": "Danish",
    "subject": "Ada Price",
    "ground_truth": "French",
    "rephrase_prompt": "Ada Price, a native",
    "locality_prompt": "The mother tongue of Leo Hall is",
    "locality_ground_truth": "French",
}
ROME = {
    "case_id": 3,
    "pararel_idx": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Danish", "id": "Q9035"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Ada Price",
    },
    "paraphrase_prompts": ["Ada Price, a native", "Ada Price spoke"],
    "neighborhood_prompts": ["The mother tongue of Leo Hall is", "Nova Lee is a native speaker of"],
    "attribute_prompts": [],
    "generation_prompts": [],
}
KNOWEDIT = {
    "subject": "Leo Hall",
    "prompt": "The name of the country of citizenship of Leo Hall is",
    "target_new": "Malta",
    "ground_truth": [["Cuba", "Republic of Cuba"]],
    "portability": {"Reasoning": [{"prompt": "Its capital is", "ground_truth": [["Valletta", "Il-Belt"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The sex of Leo Hall is", "ground_truth": [["male"]]}]},
}


def test_published_rows_are_read():
    (case,) = edits.parse([ZSRE], "zsre")
    assert (case.subject, case.target, case.old) == ("Nova Hall", "Severn", "Thames")
    assert case.locality == (Question("who wrote the song", "Ada Price"),)
    assert case.portability == (Question("Where does it end?", "the sea"),)
    (case,) = edits.parse([COUNTERFACT], "counterfact")
    assert (case.target, case.old, case.rephrases) == ("Danish", "French", ("Ada Price, a native",))
    (case,) = edits.parse([ROME], "counterfact-rome")
    assert (case.prompt, case.target, case.old) == ("The mother tongue of Ada Price is", "Danish", "French")
    assert case.rephrases == ("Ada Price, a native", "Ada Price spoke")
    assert case.locality[1] == Question("Nova Lee is a native speaker of", "French")
    (case,) = edits.parse([KNOWEDIT], "knowedit")
    assert (case.target, case.old) == ("Malta", "Cuba")
    assert case.portability == (Question("Its capital is", "Valletta", "Reasoning"),)
    assert case.locality[0].kind == "Relation_Specificity"


word = st.text("abc ", min_size=1, max_size=8).map(lambda t: t.strip() or "a")
question = st.builds(Question, word, word, st.just(""))
small = st.builds(
    Case,
    *(word, word, word, word),
    rephrases=st.lists(word, max_size=1).map(tuple),
    locality=st.lists(question, max_size=1).map(tuple),
)
FORMS = {
    "zsre": st.builds(lambda case, far: Case(**vars(case) | {"portability": far}), small, st.tuples(question)),
    "counterfact": small,
    "counterfact-rome": st.builds(
        lambda case, more, near: Case(
            **vars(case)
            | {
                "prompt": f"{case.prompt} {case.subject} {case.prompt}",
                "rephrases": more,
                "locality": tuple(Question(prompt, case.old) for prompt in near),
            }
        ),
        small,
        st.lists(word, max_size=3).map(tuple),
        st.lists(word, max_size=3),
    ),
    "knowedit": st.builds(
        lambda case, near, far: Case(**vars(case) | {"locality": near, "portability": far}),
        small,
        st.lists(st.builds(Question, word, word, st.just("Forgetfulness")), max_size=3).map(tuple),
        st.lists(st.builds(Question, word, word, st.just("Reasoning")), max_size=3).map(tuple),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_back(form, tmp_path):
    @given(st.lists(FORMS[form], max_size=4))
    def check(cases):
        assert edits.parse(json.loads(json.dumps(edits.render(cases, form))), form) == cases

    check()
    rows = {"zsre": ZSRE, "counterfact": COUNTERFACT, "counterfact-rome": ROME, "knowedit": KNOWEDIT}
    (case,) = edits.parse([rows[form]], form)
    edits.write([case], tmp_path / "file.json", form)
    assert edits.read(tmp_path / "file.json", form) == [case]


def test_the_generated_edits_fit_knowedit_and_not_the_others():
    cases = gazetteer.cases(5, 0)
    assert edits.parse(edits.render(cases, "knowedit"), "knowedit") == cases
    for form in ("zsre", "counterfact", "counterfact-rome"):
        with pytest.raises(ValueError, match=f"holds more, or less, than a row of {form}"):
            edits.render(cases, form)


@pytest.mark.parametrize(
    ("rows", "form", "says"),
    [
        ({}, "zsre", "a zsre file is a list of rows, not a dict"),
        ([{"subject": "x"}], "counterfact", "row 0 of counterfact has no field 'prompt'; it has subject"),
        (
            [KNOWEDIT, KNOWEDIT | {"target_new": [[]]}],
            "knowedit",
            "row 1 of knowedit has a field of an unexpected kind",
        ),
        ([], "csv", "no form 'csv'; there are: zsre, counterfact, counterfact-rome, knowedit"),
    ],
)
def test_other_files_are_refused(rows, form, says):
    with pytest.raises(ValueError, match=says):
        edits.parse(rows, form)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "f.json").write_text("[{")
    with pytest.raises(ValueError, match="f.json is not JSON"):
        edits.read(tmp_path / "f.json", "zsre")
    (tmp_path / "g.json").write_text("[{}]")
    with pytest.raises(ValueError, match="g.json: row 0 of zsre has no field"):
        edits.read(tmp_path / "g.json", "zsre")
