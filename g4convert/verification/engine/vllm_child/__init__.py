"""Program that runs inside vLLM's interpreter: loads a checkpoint, reports unfilled parameters, scores prompts.

__main__  Starts the program
serving   Answers questions in JSON lines
engine    Loads a checkpoint into vLLM and scores prompts
media     Brings pictures, sounds and videos into vLLM's form
loading   Looks for parameters that no tensor of the checkpoint reached
decoding  Replaces vLLM's 4-bit kernels by products of decoded weights
mending   Repairs vLLM where it does not run on this machine or with this config
state     Keeps what becomes known while vLLM starts

`verification.engine.vllm` runs this folder: `python FOLDER`. The engine's interpreter need not have g4convert or its
packages, so the modules import only torch, vLLM, the standard library, and each other, relatively: in the program the
package is named `vllm_child`. vLLM is imported inside functions, after its repairs, and where it is used.
"""
