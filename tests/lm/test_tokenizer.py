from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zfu_lib.lm.tokenizer import BOS, EOS, PAD, VOCABULARY, byte_tokenizer

TOKENIZER = byte_tokenizer()
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
