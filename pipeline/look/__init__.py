"""What people read: descriptions, cards, differences, plots, the report page. May import all but commands.

describe, card, diff        a store in words; its README; two teachers side by side
figures, plot_answers       a picture of answers
rank                        students before any is trained
facts, run_pictures, plot_costs, panels, plots, report      finished runs: pictures and one page (page.html)
"""
