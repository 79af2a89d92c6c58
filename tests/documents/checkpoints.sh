fill
publish plain-lora tickets
upt-zoo export peft plain-lora ./my-lora
upt-zoo export adapterhub tickets ./my-unipelt
