"""Level `engine`: sends the same tokens to a real engine and compares log-probabilities.

level       Starts the engine, asks it, and judges
prompts     Defines the prompts, the engine's answers, and the interface of an engine
vllm        Runs vLLM in a process of its own
vllm_child  Program that runs inside the interpreter that has vLLM
sglang      Asks an SGLang server over HTTP
answers     Reads answers, and checks them as untrusted input
http        Sends requests to a server, bounded in time and size
process     Talks to a child process in JSON lines
scores      Compares log-probabilities on the tokens that an engine names
judge       Turns numbers and refusals of an engine into findings
"""
