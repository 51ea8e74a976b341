"""The LightningModules that algorithms are made of."""
