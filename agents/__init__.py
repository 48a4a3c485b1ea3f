"""Who remembers: SB3-compatible recurrent agents. The only package that knows both memory/ and envs/."""
