"""What credit is worth, and how it looks: accuracies, agreement with labels, figures, reports."""
