"""In what words a training's progress is told."""

from __future__ import annotations

from ktrdr_ops.core.progress import GenericProgressState, ProgressRenderer, with_parts

_STARTING, _TRAINING = "Starting", "Training"
_SHOWN = 2


class TrainingProgressRenderer(ProgressRenderer):
    """``{message} (MLP on AAPL, GOOGL...)``; at the start ``Training MLP on AAPL, GOOGL [1h, 4h]``, by epoch
    ``Training MLP epoch 15/50 (AAPL, GOOGL)``. Parts that are missing are left out."""

    def render_progress_message(self, state: GenericProgressState) -> str:
        """The message with what is trained and how far it is; of its own result it makes nothing else."""
        context, message = state.context, state.message
        model, symbols = context.get("model_type"), _symbols(state)
        if state.current_step == 0 and message.startswith(_STARTING) and model:
            timeframes = ", ".join(map(str, context.get("timeframes") or ()))
            return with_parts(f"{_TRAINING} {model}", symbols and f"on {symbols}", timeframes and f"[{timeframes}]")
        if message == _TRAINING and context.get("epoch") and context.get("epochs"):
            what = " ".join(part for part in (_TRAINING, model or "") if part)
            epoch = f"epoch {context['epoch']}/{context['epochs']}"
            return with_parts(what, epoch, symbols and f"({symbols})")
        if message.startswith(f"{_TRAINING} "):
            return message
        inside = " on ".join(part for part in (str(model or ""), symbols) if part)
        return with_parts(message, f"({inside})" if inside else "")

    def render_step_detail(self, state: GenericProgressState) -> str:
        """``Epoch 5/10 · Batch 120/500 · cuda:0``, at its end ``Epoch 5/10 · loss 0.684 · val 0.691 · best 3``; before
        there are epochs the plain message."""
        context = state.context
        if not (context.get("epoch") and context.get("epochs")):
            return state.message
        parts = [f"Epoch {context['epoch']}/{context['epochs']}"]
        if context.get("batch"):
            parts.append(f"Batch {context['batch']}")
        if context.get("accelerator"):
            parts.append(str(context["accelerator"]))
        parts += [
            f"{word} {value:.4f}"
            for word, name in (("loss", "train_loss"), ("val", "val_loss"))
            if isinstance(value := context.get(name), float)
        ]
        if "train_loss" in context and context.get("best_epoch"):
            parts.append(f"best {context['best_epoch']}")
        return " · ".join(parts)


def _symbols(state: GenericProgressState) -> str:
    """The first two, then ``...``."""
    symbols = [str(each) for each in state.context.get("symbols") or ()]
    return ", ".join(symbols[:_SHOWN]) + ("..." if len(symbols) > _SHOWN else "")
