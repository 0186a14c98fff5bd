"""What is known of a model's task: prompts to refine with, and figures of quality. One file each."""
