"""The two token moves of masked pre-training: ``api`` is the door, ``reference`` says in plain torch what is meant."""
