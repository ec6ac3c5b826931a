"""The hall: what every wing shares. It knows no wing and no method, and needs only torch, numpy and safetensors."""
