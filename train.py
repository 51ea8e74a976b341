"""Train, validate or predict: `python train.py algo=grpo model=gpt2 ...`; the same as the command `lit-posttrain`."""

from lit_posttrain.app.cli import command

if __name__ == "__main__":
    command()
