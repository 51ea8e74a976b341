"""A language model that is a table: the logits of the next token by the last one. Known optima are exact for it."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

PAD, EOS, PROMPT = 0, 1, 2
FIRST_ACTION = 3
NEVER = -40.0  # logit of what is no action


class TableConfig(PretrainedConfig):
    model_type = "lit_posttrain_table"


class OneHot(PreTrainedModel):
    """The trunk: a token's state is its one-hot vector."""

    config_class = TableConfig

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("states", torch.eye(config.vocab_size, dtype=torch.float64))
        self.post_init()

    @property
    def device(self):
        return self.states.device

    def forward(self, input_ids, **inputs):
        return BaseModelOutput(last_hidden_state=self.states[input_ids])


class TableLM(PreTrainedModel):
    config_class = TableConfig
    base_model_prefix = "trunk"

    def __init__(self, config):
        super().__init__(config)
        self.trunk = OneHot(config)
        self.table = nn.Linear(config.vocab_size, config.vocab_size, dtype=torch.float64)
        self.generation_config = GenerationConfig(eos_token_id=EOS)
        self.post_init()

    def get_output_embeddings(self):
        return self.table

    def get_input_embeddings(self):
        return nn.Embedding(self.config.vocab_size, 1)  # of which its number of tokens is asked

    def forward(self, input_ids, logits_to_keep=0, **inputs):
        hidden = self.trunk(input_ids)[0]
        return CausalLMOutput(logits=self.table(hidden[:, -logits_to_keep:] if logits_to_keep else hidden))


def make_table(reference: list[float]) -> TableLM:
    """A table that takes each action with the given probability in every state."""
    number = FIRST_ACTION + len(reference)
    model = TableLM(TableConfig(vocab_size=number, eos_token_id=EOS, num_hidden_layers=1))
    with torch.no_grad():
        model.table.weight.zero_()
        model.table.bias.fill_(NEVER)
        model.table.bias[FIRST_ACTION:] = torch.tensor(reference, dtype=torch.float64).log()
    model.table.bias.requires_grad_(False)
    return model.eval()


def probabilities(model: TableLM, last: int) -> torch.Tensor:
    """Of the actions after the token `last`."""
    logits = model.table(torch.eye(model.config.vocab_size, dtype=torch.float64)[last])
    return logits.softmax(-1)[FIRST_ACTION:].detach()


def make_tokenizer(num_actions: int) -> PreTrainedTokenizerFast:
    """`<pad> <eos> go 0 1 ...`."""
    words = ["<pad>", "<eos>", "go", *map(str, range(num_actions))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")
