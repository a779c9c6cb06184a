import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from zfu_lib.data.worlds import chaincalc, chronofacts, stackprog
from zfu_lib.data.worlds.problem import prompt, solution
from zfu_lib.lm.recipes.words import WORDS
from zfu_lib.lm.tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer, word_tokenizer

TOKENIZER = byte_tokenizer()
SHARED = word_tokenizer(WORDS)
TEXTS = st.text(st.characters(codec="utf-8"))


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_ids_are_the_bytes_and_decode_to_the_text(text):
    assume(not any(special in text for special in (BOS, EOS, PAD)))
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_nothing_is_tidied_up():
    for text in ("  two  spaces \n", "it 's a , b .", "e\u0301 \u00e9", "\x00\r\n\u2028", "\U0001f642\u200d"):
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_special_tokens_padding_and_saving(tmp_path):
    from transformers import AutoTokenizer

    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (256, 257, 258)
    assert len(TOKENIZER) == VOCABULARY
    batch = TOKENIZER(["ab", "c"], padding=True)
    assert batch["input_ids"] == [[97, 98], [99, 258]]
    assert batch["attention_mask"] == [[1, 1], [1, 0]]
    assert TOKENIZER.decode([256, 97, 257], skip_special_tokens=True) == "a"
    TOKENIZER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "h\u00e9 , it 's \u4e16"
    assert again(text)["input_ids"] == list(text.encode())
    assert again.decode(again(text)["input_ids"]) == text


# Bytes with whole words


def of(text, tokenizer=SHARED):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=300)
@given(TEXTS | st.lists(st.sampled_from(WORDS) | st.sampled_from([" ", "  ", "\n", "\u00e9", "zebra"])).map("".join))
@example("kiwi<-plum  +10\n\n fig ?\u2028 \t x\r\n")
def test_any_text_comes_back(text):
    assume(not any(special in text for special in (BOS, EOS, PAD)))
    assert SHARED.decode(of(text)) == text


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_one_token_with_and_without_a_space_before_it(word):
    bare, spaced = of(word), of(f" {word}")
    assert len(bare) == len(spaced) == 1
    assert bare != spaced
    assert [SHARED.decode(ids) for ids in (bare, spaced)] == [word, f" {word}"]


def test_what_is_no_word_becomes_its_bytes():
    assert of("zebra") == list(b"zebra")
    assert of(" zebra") == list(b" zebra")
    assert of("kiwis") == list(b"kiwis"), "no part of a piece is taken for a word"
    assert of("\u00e9") == list("\u00e9".encode())
    assert of("12345") == list(b"12345")


@pytest.mark.parametrize("world", [chaincalc, stackprog, chronofacts])
def test_the_worlds_need_no_bytes_but_their_line_ends(world):
    for problem in world.problems(30, 0):
        for text in (prompt(problem), prompt(problem, hint=solution(problem, "insights")), solution(problem)):
            assert {i for i in of(text) if i < 256} == {ord("\n")}


def test_words_at_the_end_change_no_id():
    longer = word_tokenizer((*WORDS, "zebra", "gnu"))
    before, after = SHARED.get_vocab(), longer.get_vocab()
    assert before.items() <= after.items()
    assert sorted(set(after.values()) - set(before.values())) == list(range(len(SHARED), len(SHARED) + 4))
    assert of(" zebra", longer) == [len(SHARED) + 1]
    assert (longer.bos_token_id, longer.eos_token_id, longer.pad_token_id) == (256, 257, 258)


def test_a_text_begins_as_in_training():
    assert SHARED("kiwi")["input_ids"] == [256, *of("kiwi")]
    assert SHARED.decode(SHARED("kiwi")["input_ids"], skip_special_tokens=True) == "kiwi"


def test_a_word_of_one_byte_keeps_its_byte():
    assert of(";") == [ord(";")]
    assert of(" ;") != [ord(" "), ord(";")]
    assert sorted(SHARED.get_vocab().values()) == list(range(len(SHARED)))


def test_the_shared_tokenizer_is_saved_and_read_again(tmp_path):
    from transformers import AutoTokenizer

    SHARED.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("fig <- plum + 10 ; zebra ?\n", "  it 's \u00e9", "Goal : kiwi\nAnswer : 7\n"):
        assert of(text, again) == of(text)
        assert again.decode(of(text, again)) == text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fig", "kiwi", "fig"), r"twice: \['fig'\]"),
        (("two words",), "'two words' is not one word"),
        (("line\nend",), r"is not one word but \['line', "),
        (("",), "'' is not one word"),
    ],
)
def test_words_that_cannot_be_words_are_refused(words, says):
    with pytest.raises(ValueError, match=says):
        word_tokenizer(words)
