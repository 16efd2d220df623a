"""What an adapted checkpoint becomes.

========================  ==================================================
`merging`                 a plain checkpoint
`formats`                 the other forms, and which method has which
`peft_format`             a LoRA in PEFT's format
`task_head`               what a model has outside of its backbone, as the head of a task
`onnx_export`             a merged model for onnxruntime
========================  ==================================================
"""
