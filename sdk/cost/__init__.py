"""What a plan will cost, predicted before any work is done."""
