"""Where rows come from: files, data sets on the Hugging Face Hub, memory, functions, and mixtures of these."""
