"""Tokens and masks, by hand: the border between prompt and completion, turns, BOS and EOS."""

import copy
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_posttrain.data.formats.chat import encode_prompt
from lit_posttrain.data.formats.encoder import Encoder
from tests.unit.data.test_data_chat import make_tokenizer, words

USER, BOT = {"role": "user", "content": "what"}, {"role": "assistant", "content": "up"}
CHAT = [USER, BOT, {"role": "user", "content": "is"}, {"role": "assistant", "content": "be brief"}]
ENDS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }} {{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
STRIPS = (  # an answer that is not the last one loses what stands before its colon, as thinking does
    "{% for m in messages %}<|user|> {% if m.role == 'assistant' %}<|bot|> "
    "{{ m.content if loop.last else m.content.split(':')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|user|> <|bot|>{% endif %}"
)


def shown(row) -> str:
    """The words of a row, those supervised in brackets, and a bar where the completion begins."""
    marked = [f"[{w}]" if on else w for w, on in zip(words(row.completion_ids), row.loss_mask, strict=True)]
    return " ".join([*words(row.prompt_ids), "|", *marked])


def encode(prompt, completion, **tokenizer) -> str:
    return shown(Encoder(make_tokenizer(**tokenizer)).encode(prompt, completion)[0])


def test_text_has_one_bos_and_one_supervised_eos():
    assert encode("what is", " up", single="<s> $A </s>") == "<s> what is | [up] [</s>]"
    assert encode("<s> what is", " up </s>", single="<s> $A </s>") == "<s> what is | [up] [</s>]"
    assert encode("what is", " up") == "what is | [up] [</s>]"


def test_text_without_a_prompt_starts_from_bos_or_eos():
    assert encode("", "what is", single="<s> $A </s>") == "<s> | [what] [is] [</s>]"
    assert encode("", "what is") == "<s> | [what] [is] [</s>]"
    assert encode("", "what is", bos=False) == "</s> | [what] [is] [</s>]"


def test_every_assistant_turn_is_supervised_with_its_end_token():
    got = encode([], CHAT, single="<s> $A </s>", template=ENDS)
    assert got == "<s> <|user|> what <|bot|> | [up] [</s>] <|user|> is <|bot|> [be] [brief] [</s>]"


def test_of_a_prompt_with_answers_only_the_completion_is_supervised():
    got = encode(CHAT[:3], CHAT[3:], template=ENDS)
    assert got == "<s> <|user|> what <|bot|> up </s> <|user|> is <|bot|> | [be] [brief] [</s>]"


def test_what_follows_the_last_answer_is_left_out():
    assert encode([], [*CHAT[:3]], template=ENDS) == "<s> <|user|> what <|bot|> | [up] [</s>]"


def test_the_eos_is_appended_where_the_template_has_none():
    template = ENDS.replace("</s>", "")
    got = encode([], CHAT, template=template)
    assert got == "<s> <|user|> what <|bot|> | [up] <|user|> is <|bot|> [be] [brief] [</s>]"


def test_messages_without_a_template_are_plain_text():
    got = encode([], CHAT, single="<s> $A")
    assert got == "<s> User : what Assistant : | [up] User : is Assistant : [be] [brief] [</s>]"


def test_a_template_that_rewrites_supervises_the_last_turn_or_is_refused():
    chat = [USER, {"role": "assistant", "content": "be : up"}, *CHAT[2:]]
    tokenizer = make_tokenizer(template=STRIPS)
    row, rewritten = Encoder(tokenizer).encode([], chat)
    assert rewritten
    last = "<|user|> what <|user|> <|bot|> up <|user|> is <|user|> <|bot|> | [be] [brief] [</s>]"
    assert shown(row) == last
    assert not Encoder(tokenizer).encode([], chat[:2])[1]  # one turn: nothing to rewrite
    with pytest.raises(ValueError, match=r"rewrites earlier turns .*rewritten_turns=last"):
        Encoder(tokenizer, rewritten_turns="refuse").encode([], chat)
    with pytest.raises(ValueError, match="`rewritten_turns` must be one of last, refuse, got 'first'"):
        Encoder(tokenizer, rewritten_turns="first")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}<|user|> {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|bot|>{% endif %}",
            "does not begin an answer the way it renders one",
        ),
        (
            "{% for m in messages if m.role == 'assistant' %}<|bot|> {{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|bot|>{% endif %}",
            "leaves out message 0, from the user: 'what'",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
            "{% for m in messages if m.role != 'user' %}<|bot|> x{% endfor %}"
            "{% if add_generation_prompt %}<|bot|>{% endif %}",
            "leaves out message 1, from the assistant: 'up'",
        ),
        (
            "{% for m in messages | reverse if m.role == 'user' %}{{ m.content }} {% endfor %}"
            "{% if messages[-1].role == 'assistant' %}<|bot|> {{ messages[-1].content }}{% endif %}"
            "{% if add_generation_prompt %}<|bot|>{% endif %}",
            "changes the order of the messages",
        ),
    ],
)
def test_a_template_that_cannot_be_learnt_from_is_refused(template, message):
    chat = CHAT if "order" in message else CHAT[:2]
    with pytest.raises(ValueError, match=message):
        Encoder(make_tokenizer(template=template)).encode([], chat)


@pytest.mark.parametrize("chat", [[USER], [BOT], [BOT, USER]])
def test_a_dialogue_without_an_answer_is_refused(chat):
    with pytest.raises(ValueError, match=r"must have an assistant's message behind another one"):
        Encoder(make_tokenizer()).encode([], chat)


def test_without_an_eos_nothing_would_teach_to_stop():
    with pytest.raises(ValueError, match="no EOS token"):
        Encoder(make_tokenizer(eos=False))


def test_the_pad_token_may_be_the_eos():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert shown(Encoder(tokenizer).encode("what", " up")[0]) == "what | [up] [</s>]"


@pytest.fixture(scope="module")
def gpt2(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "models" / "gpt2")


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens"),
    [
        ("The answer is", " 42", ["Ġ42"]),
        ("The answer is ", "42", ["42"]),  # joined: "Ġ42"; asked with the prompt the model has to begin with "42"
        ("an un", "believable story", ["bel", "iev", "able", "Ġstory"]),
        ("Line\n", "\nnext", ["Ċ", "next"]),  # joined: "ĊĊ"
        ("a", "", []),
    ],
)
def test_the_border_of_a_real_bpe(gpt2, prompt, completion, tokens):
    row, _ = Encoder(gpt2).encode(prompt, completion)
    assert list(row.prompt_ids) == encode_prompt(prompt, gpt2)  # what the model is given when it is to answer
    assert gpt2.convert_ids_to_tokens(row.completion_ids) == [*tokens, "<|endoftext|>"]
    assert gpt2.decode([*row.prompt_ids, *row.completion_ids]) == f"{prompt}{completion}<|endoftext|>"
    assert all(row.loss_mask)


def test_plain_text_of_gpt2_starts_from_its_end_token(gpt2):
    row, _ = Encoder(gpt2).encode("", "Hello there")
    assert (list(row.prompt_ids), row.completion_ids[-1]) == ([gpt2.eos_token_id], gpt2.eos_token_id)
    assert row.num_terms == 3
    assert Encoder(gpt2).limit == gpt2.model_max_length or Encoder(gpt2).limit is None


def test_a_vocabulary_that_puts_a_space_before_every_text():
    """Encoded alone the completion would begin with a space that is not there: the joined token is taken."""
    vocabulary = {name: i for i, name in enumerate(["<unk>", "</s>", "▁a", "▁ab", "b", "▁b", "▁", "a"])}
    core = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("▁a", "b"), ("▁", "b")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    row, _ = Encoder(tokenizer).encode("b a", "b")
    assert tokenizer.convert_ids_to_tokens([*row.prompt_ids, *row.completion_ids]) == ["▁b", "▁ab", "</s>"]
    assert list(row.loss_mask) == [True, True]


@pytest.mark.parametrize(("prompt", "completion"), [("w3 w4", "w5 w6"), ("w3 w4", "w3"), ("nobody w4", "w5")])
def test_words_that_joined_are_unknown_are_encoded_apart(word_tokenizer, prompt, completion):
    row, _ = Encoder(word_tokenizer).encode(prompt, completion)
    assert word_tokenizer.convert_ids_to_tokens(row.prompt_ids) == [
        word_tokenizer.unk_token if word == "nobody" else word for word in prompt.split()
    ]
    assert word_tokenizer.convert_ids_to_tokens(row.completion_ids) == [*completion.split(), "<eos>"]


def test_white_space_behind_an_end_token_is_not_supervised(gpt2):
    """ChatML writes a line break behind the token at which a model stops: it never has to write it."""
    tokenizer = copy.deepcopy(gpt2)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    row, _ = Encoder(tokenizer).encode([], CHAT)
    tokens = tokenizer.convert_ids_to_tokens(row.completion_ids)
    marked = [token for token, on in zip(tokens, row.loss_mask, strict=True) if on]
    assert marked == ["up", "<|endoftext|>", "be", "Ġbrief", "<|endoftext|>"]
    assert tokens[:4] == ["up", "<|endoftext|>", "Ċ", "user"]
    assert tokens[-1] == "<|endoftext|>"
