"""The worklist: Unified Procedure Steps (PS3.4 annex CC), their subscribers, and this node as a performer of them."""
