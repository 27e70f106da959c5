"""A device that is no CPU, so that nothing of vLLM's CPU build is mended or replaced."""


class Platform:
    device_type = "fake"

    def is_cpu(self) -> bool:
        return False


current_platform = Platform()
