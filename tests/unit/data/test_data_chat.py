import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_posttrain.data.formats.chat import check_messages, completion_as, encode_prompt, render_messages

WORDS = ["[unk]", "<s>", "</s>", "<|user|>", "<|bot|>", "what", "is", "up", "be", "brief", ":", "User", "Assistant"]
ID = {word: number for number, word in enumerate(WORDS)}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<|user|> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
QUESTION = [{"role": "user", "content": "what is up"}]


def make_tokenizer(*, single: str | None = None, bos: bool = True, eos: bool = True, template: str | None = None):
    """A word-level tokenizer; `single` is what its post-processor adds, such as "<s> $A </s>"."""
    core = Tokenizer(models.WordLevel(ID, unk_token="[unk]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if single is not None:
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[unk]",
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        additional_special_tokens=["<s>", "</s>", "<|user|>", "<|bot|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


def words(ids: list[int]) -> list[str]:
    return [WORDS[number] for number in ids]


def test_text_is_left_as_it_is():
    tokenizer = make_tokenizer(template=TEMPLATE)
    assert encode_prompt("what  is\n", tokenizer) == list(tokenizer("what  is\n")["input_ids"])


def test_messages_go_through_the_template_with_the_assistants_turn_begun():
    assert (
        render_messages(QUESTION, make_tokenizer(template=TEMPLATE), begin_answer=True)
        == "<s><|user|> what is up <|bot|>"
    )


def test_messages_without_a_template_become_plain_text():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "up"},
        {"role": "user", "content": "is"},
    ]
    expected = "be brief\n\nUser: what\n\nAssistant: up\n\nUser: is\n\nAssistant:"
    assert render_messages(messages, make_tokenizer(), begin_answer=True) == expected


def test_a_template_that_refuses_is_quoted():
    with pytest.raises(ValueError, match=r"chat template does not take the messages .*System role not supported"):
        render_messages(
            [{"role": "system", "content": "be brief"}, *QUESTION], make_tokenizer(template=TEMPLATE), begin_answer=True
        )


def test_the_bos_of_a_template_is_not_doubled():
    tokenizer = make_tokenizer(single="<s> $A </s>", template=TEMPLATE)
    assert words(tokenizer("what")["input_ids"]) == ["<s>", "what", "</s>"]  # it does add them itself
    assert words(encode_prompt(QUESTION, tokenizer)) == ["<s>", "<|user|>", "what", "is", "up", "<|bot|>"]
    rendered = render_messages(QUESTION, tokenizer, begin_answer=True)
    assert encode_prompt(rendered, tokenizer) == encode_prompt(QUESTION, tokenizer)


def test_a_template_without_bos_gets_none():
    tokenizer = make_tokenizer(single="<s> $A", template="<|user|> {{ messages[0].content }} <|bot|>")
    assert words(encode_prompt(QUESTION, tokenizer)) == ["<|user|>", "what", "is", "up", "<|bot|>"]


def test_plain_text_gets_the_bos_but_no_eos_at_its_end():
    tokenizer = make_tokenizer(single="<s> $A </s>")
    assert words(encode_prompt("what is", tokenizer)) == ["<s>", "what", "is"]
    assert words(encode_prompt("what </s> is </s>", tokenizer)) == ["<s>", "what", "</s>", "is"]
    assert words(encode_prompt("what is", make_tokenizer())) == ["what", "is"]


def test_messages_without_a_template_get_what_plain_text_gets():
    tokenizer = make_tokenizer(single="<s> $A </s>")
    assert words(encode_prompt(QUESTION, tokenizer)) == ["<s>", "User", ":", "what", "is", "up", "Assistant", ":"]


def test_an_empty_prompt_starts_from_bos_or_eos():
    assert words(encode_prompt("", make_tokenizer(single="<s> $A </s>"))) == ["<s>"]
    assert words(encode_prompt("", make_tokenizer())) == ["<s>"]
    assert words(encode_prompt("", make_tokenizer(bos=False))) == ["</s>"]
    with pytest.raises(ValueError, match="neither a BOS nor an EOS"):
        encode_prompt("", make_tokenizer(bos=False, eos=False))


def test_one_token_that_is_both_bos_and_eos_is_kept_in_front():
    tokenizer = make_tokenizer(single="<s> $A")
    tokenizer.eos_token = "<s>"
    assert words(encode_prompt("what", tokenizer)) == ["<s>", "what"]
    assert words(encode_prompt("", tokenizer)) == ["<s>"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a list of at least one message"),
        ("text", "must be a list of at least one message, got 'text'"),
        (["text"], "message 0 must have a `role` and a `content`"),
        ([*QUESTION, {"role": "user"}], "message 1 must have a `role` and a `content`"),
        ([{"role": "user", "content": ["parts"]}], "message 0 must have a `role` and a `content`, both text"),
        ([*QUESTION, {"role": "assistant", "content": "up"}], "one to answer .* got one from the assistant"),
        ([{"role": "system", "content": "be brief"}], "one to answer .* got one from the system"),
    ],
)
def test_what_is_no_conversation_is_refused(messages, message):
    with pytest.raises(ValueError, match=rf"^.*{message}"):
        check_messages(messages)


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_prompt_may_end_with_the_user_or_a_tool(role):
    check_messages([*QUESTION, {"role": "assistant", "content": "up"}, {"role": role, "content": "is"}])


def test_a_completion_has_the_shape_of_its_prompt():
    assert completion_as("what", " up") == " up"
    assert completion_as(QUESTION, "up") == [{"role": "assistant", "content": "up"}]
