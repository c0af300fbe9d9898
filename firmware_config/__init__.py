"""What a device is (settings, profiles of boards, passports of stethoscopes), and what the three commands share."""
