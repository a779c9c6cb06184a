"""Skill extraction: spans, formats, scores, a verifier, and one module per paper."""
