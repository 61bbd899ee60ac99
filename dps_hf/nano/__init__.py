"""How dps-nano is made and measured: its scenes, emoji and capitals, their tasks, evaluations and judges."""
