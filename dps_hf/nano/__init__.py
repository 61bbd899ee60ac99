"""How dps-nano is made and measured: scenes, emoji and facts, their wording, tasks and judges. Nothing outside imports it."""
