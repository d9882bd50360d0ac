"""Runtime: what an application embeds; numpy and one engine."""
