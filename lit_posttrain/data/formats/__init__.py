"""How rows are read and made tokens of: templates, prompts, instructions, preferences, chats."""
