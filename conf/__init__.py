"""The Hydra configuration of lit_posttrain, for `hydra.searchpath: [pkg://lit_posttrain.conf]`."""
